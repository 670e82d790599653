"""What every benchmark of the engine alone keeps of its runs. Knows no torch and no files."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from caraserve_cli.bench.comparison import Verdict
from caraserve_cli.bench.result_facts import MeasuredFacts
from caraserve_cli.events import StepRecord

if TYPE_CHECKING:
    from caraserve_cli.bench.peft_peer import PeftRun
    from caraserve_cli.bench.vllm_peer import VllmRun


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
        """Median of the steps that decode and do not prefill; None where there is none. A step that computed
        only tokens nobody wants any more does neither."""
        decoding = [
            step.end_ms - step.start_ms
            for step in self.steps
            if step.num_decode_tokens and not step.num_prefill_tokens
        ]
        return statistics.median(decoding) if decoding else None

    @property
    def num_adapter_loads(self) -> int:
        return sum(step.num_adapter_loads for step in self.steps)

    @property
    def peak_running(self) -> int:
        """The most requests that ran at once; those that ended with a step count to it by their tokens."""
        return max((max(step.num_running, step.num_decode_tokens) for step in self.steps), default=0)


# Told after each run: the case's name, the repeat (from 1; 0 for a warm-up), and the run.
OnCaseRun = Callable[[str, int, CaseRun], None]


def all_undone(runs: Iterable[CaseRun]) -> tuple[str, ...]:
    """What of the work was not done, in whichever run."""
    return tuple(dict.fromkeys(run.undone for run in runs if run.undone is not None))


@dataclass(frozen=True, slots=True)
class Limit:
    """Something that was required and measured."""

    is_met: bool
    sentence: str


_Run = TypeVar("_Run", "PeftRun", "VllmRun")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Peer(Generic[_Run]):
    """What a peer took for a case, or why that is not known: one of the two is None."""

    run: _Run | None
    problem: str | None

    def as_json(self) -> dict[str, object]:
        if self.run is None:
            return {"problem": self.problem}
        return {**dataclasses.asdict(self.run), "tokens_per_s": self.run.tokens_per_s}


class Peer(_Peer["PeftRun"]):
    """transformers + PEFT."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmPeer(_Peer["VllmRun"]):
    """vLLM; `is_missing` where it is not installed."""

    is_missing: bool = False

    @classmethod
    def missing(cls) -> VllmPeer:
        """The one that is not installed."""
        return cls(run=None, problem="vLLM is not installed", is_missing=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Peers:
    """Those of a case, each None where the case does not ask for it."""

    peft: Peer | None = None
    vllm: VllmPeer | None = None

    def as_json(self) -> dict[str, object]:
        return {"peft": self.peft and self.peft.as_json(), "vllm": self.vllm and self.vllm.as_json()}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts(MeasuredFacts):
    """Under which circumstances was measured.

    Attributes:
        weights: always `random`; no number here says anything of answers.
        copy_bytes_per_s, product_flops_per_s: the device's speeds, measured before the cases.
        startup_s: from nothing to the first ready replica, adapters and warm-ups not included.
        adapters_s: to make all adapters in host memory.
    """

    weights: str
    device: str
    num_threads: int
    base: str
    dtype: str
    warmups: int
    repeats: int
    copy_bytes_per_s: float
    product_flops_per_s: float
    startup_s: float
    num_adapters: int
    adapters_s: float


def worst_verdict(verdicts: Iterable[Verdict]) -> Verdict:
    """The one that decides, of at least one."""
    found = set(verdicts)
    worst_first = (Verdict.CANNOT_TELL, Verdict.MISSED, Verdict.MET)
    return next(verdict for verdict in worst_first if verdict in found)
