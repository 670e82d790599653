"""From the runs of a throughput benchmark to numbers and a verdict. Knows no torch and no files."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from caraserve_cli.bench.comparison import Spread, Verdict
from caraserve_cli.bench.engine_result import CaseRun, EngineFacts, Peers, all_undone, worst_verdict
from caraserve_cli.bench.throughput_recipe import THROUGHPUT, ThroughputCase


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    """One case.

    Attributes:
        decode_step_ms: of the runs' medians; None where a run has no decoding step without prefill.
        num_adapter_loads: from host memory to the device, of each run.
        peak_running: requests at once, of each run.
        kv_tokens: what the KV cache held room for.
        adapter_pool_bytes: what the device held adapters in.
        floor_tokens_per_s: what the device could give at best, see `floor`.
        undone: what of the work was not done, in whichever run.
        peers: what others gave; nothing is required of them.
    """

    case: ThroughputCase
    tokens_per_s: Spread
    seconds: Spread
    decode_step_ms: Spread | None
    num_adapter_loads: tuple[int, ...]
    peak_running: tuple[int, ...]
    kv_tokens: int
    adapter_pool_bytes: int
    floor_tokens_per_s: float
    undone: tuple[str, ...]
    peers: Peers

    @property
    def of_floor(self) -> float:
        """The median as a fraction of the floor."""
        return self.tokens_per_s.median / self.floor_tokens_per_s

    @property
    def verdict(self) -> Verdict:
        if self.undone:
            return Verdict.CANNOT_TELL
        at_least = self.case.at_least
        return Verdict.MET if at_least is None or self.tokens_per_s.median >= at_least else Verdict.MISSED

    def as_json(self) -> dict[str, object]:
        """The case's own keys first, then what was measured."""
        values = dataclasses.asdict(self)
        values["peers"] = self.peers.as_json()
        return {**values.pop("case"), **values, "of_floor": self.of_floor, "verdict": self.verdict}


def judge_case(
    case: ThroughputCase,
    runs: Sequence[CaseRun],
    *,
    kv_tokens: int,
    adapter_pool_bytes: int,
    floor_tokens_per_s: float,
    peers: Peers,
) -> CaseResult:
    """What the measured runs of a case say, of which there is at least one."""
    steps_ms = [run.decode_step_ms for run in runs]
    decode_steps_ms = [step_ms for step_ms in steps_ms if step_ms is not None]
    return CaseResult(
        case=case,
        tokens_per_s=Spread.of([run.tokens_per_s for run in runs]),
        seconds=Spread.of([run.seconds for run in runs]),
        decode_step_ms=Spread.of(decode_steps_ms) if len(decode_steps_ms) == len(runs) else None,
        num_adapter_loads=tuple(run.num_adapter_loads for run in runs),
        peak_running=tuple(run.peak_running for run in runs),
        kv_tokens=kv_tokens,
        adapter_pool_bytes=adapter_pool_bytes,
        floor_tokens_per_s=floor_tokens_per_s,
        undone=all_undone(runs),
        peers=peers,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ThroughputResult:
    """What a throughput benchmark found, and where; every request had these lengths."""

    facts: EngineFacts
    prompt_tokens: int
    output_tokens: int
    cases: tuple[CaseResult, ...]

    @property
    def verdict(self) -> Verdict:
        return worst_verdict(case.verdict for case in self.cases)

    def as_json(self) -> dict[str, object]:
        """The content of the file that `--json` writes."""
        return {
            "kind": THROUGHPUT,
            **self.facts.as_json(),
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "cases": [case.as_json() for case in self.cases],
            "verdict": self.verdict,
        }
