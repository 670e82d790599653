"""From the runs of a throughput benchmark to numbers and a verdict. Knows no torch and no files."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from caraserve_cli.bench.comparison import Spread, Verdict
from caraserve_cli.bench.throughput_recipe import ThroughputCase
from caraserve_cli.core import StepRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseRun:
    """All requests of a case, answered once.

    Attributes:
        seconds: from the requests' submission to the last answer.
        num_output_tokens: of all answers.
        steps: what the engine did.
        undone: what of the work was not done, None if all of it was.
    """

    seconds: float
    num_output_tokens: int
    steps: Sequence[StepRecord]
    undone: str | None

    @property
    def tokens_per_s(self) -> float:
        """Output tokens a second."""
        return self.num_output_tokens / self.seconds

    @property
    def decode_step_ms(self) -> float | None:
        """Median of the steps without prefill; None where there is none."""
        decoding = [step.end_ms - step.start_ms for step in self.steps if not step.num_prefill_tokens]
        return statistics.median(decoding) if decoding else None

    @property
    def num_adapter_loads(self) -> int:
        return sum(step.num_adapter_loads for step in self.steps)

    @property
    def peak_running(self) -> int:
        """The most requests that ran at once; those that ended with a step count to it by their tokens."""
        return max((max(step.num_running, step.num_decode_tokens) for step in self.steps), default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    """One case.

    Attributes:
        decode_step_ms: of the runs' medians; None where a run has no step without prefill.
        num_adapter_loads: from host memory to the device, of each run.
        peak_running: requests at once, of each run.
        kv_tokens: what the KV cache held room for.
        adapter_pool_bytes: what the device held adapters in.
        floor_tokens_per_s: what the device could give at best, see `floor`.
        undone: what of the work was not done, in whichever run.
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
        return {**values.pop("case"), **values, "of_floor": self.of_floor, "verdict": self.verdict}


def judge_case(
    case: ThroughputCase,
    runs: Sequence[CaseRun],
    *,
    kv_tokens: int,
    adapter_pool_bytes: int,
    floor_tokens_per_s: float,
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
        undone=tuple(dict.fromkeys(run.undone for run in runs if run.undone is not None)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ThroughputFacts:
    """Under which circumstances was measured.

    Attributes:
        weights: always `random`; no number here says anything of answers.
        commit: of the code, None where nothing says it.
        load_average: processes that wanted a core in the minute before, others' included.
        copy_bytes_per_s, product_flops_per_s: the device's speeds, measured before the cases.
        startup_s: from nothing to the first ready replica, adapters and warm-ups not included.
        adapters_s: to make all adapters in host memory.
    """

    recipe: str
    description: str
    weights: str
    caraserve_version: str
    commit: str | None
    versions: dict[str, str]
    device: str
    num_threads: int
    num_cores: int
    load_average: float
    base: str
    dtype: str
    prompt_tokens: int
    output_tokens: int
    warmups: int
    repeats: int
    copy_bytes_per_s: float
    product_flops_per_s: float
    startup_s: float
    num_adapters: int
    adapters_s: float


@dataclass(frozen=True, slots=True)
class ThroughputResult:
    """What a throughput benchmark found, and where."""

    facts: ThroughputFacts
    cases: tuple[CaseResult, ...]

    @property
    def verdict(self) -> Verdict:
        verdicts = {case.verdict for case in self.cases}
        worst_first = (Verdict.CANNOT_TELL, Verdict.MISSED, Verdict.MET)
        return next(verdict for verdict in worst_first if verdict in verdicts)

    def as_json(self) -> dict[str, object]:
        """The content of the file that `--json` writes."""
        facts = {"kind": "throughput", **dataclasses.asdict(self.facts)}
        return {**facts, "cases": [case.as_json() for case in self.cases], "verdict": self.verdict}
