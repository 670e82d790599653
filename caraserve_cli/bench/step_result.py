"""What a benchmark of steps found: times, ratios to floors, a verdict. Knows no torch and no files."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from caraserve_cli.bench.comparison import Spread, Verdict
from caraserve_cli.bench.engine_result import EngineFacts, Limit, Peers, worst_verdict
from caraserve_cli.bench.step_recipe import STEPS, Measure, StepCase

# No step is faster than the device, but a floor's speeds are measured too: the bandwidth by a copy, which
# writes half of its bytes, while a decoding step almost only reads, and may be a little faster. Beyond these
# the measurement is wrong. Chosen, not measured.
_LEAST_TIMES_FLOOR = 0.95
_MOST_OF_PRODUCT_RATE = 1.05


def _at_most(what: str, times_floor: float, required: float) -> Limit:
    sentence = f"{what} {times_floor:.3f}x its floor; the recipe allows {required:g}x"
    return Limit(times_floor <= required, sentence)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraPart:
    """The added time: what a step takes more with adapters than without.

    Its floor bounds the bytes that adapters have, not the added time: what reads them may run beside the
    base's products, so that a part of it adds nothing. Less than one floor can therefore be real, and nothing
    or less than nothing cannot.

    Attributes:
        part_ms: of each repeat, the step with adapters minus the step of the same repeat without.
        share: of each repeat, the same as a share of the step with adapters.
        floor_ms: see `floor.adapters_seconds`.
    """

    part_ms: Spread
    share: Spread
    floor_ms: float

    @property
    def times_floor(self) -> float:
        return self.part_ms.median / self.floor_ms

    def as_json(self) -> dict[str, object]:
        return {**dataclasses.asdict(self), "times_floor": self.times_floor}


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimes:
    """What the steps of a case took.

    Attributes:
        num_steps: that each run's median is of.
        context_tokens: of a request in a decoding step, on average; 0 for prefill.
        floor_ms: see `floor`, of decoding or prefill as the case measures.
        flops: of a prefill step, as the floor counts them; 0 for decoding.
        lora: None without a case to compare with.
    """

    step_ms: Spread
    num_steps: tuple[int, ...]
    context_tokens: float
    floor_ms: float
    flops: int
    lora: LoraPart | None

    @property
    def times_floor(self) -> float:
        return self.step_ms.median / self.floor_ms

    @property
    def of_product_rate(self) -> float:
        """What a prefill step reaches of the matrix product rate."""
        return self.floor_ms / self.step_ms.median

    @property
    def flops_per_s(self) -> float:
        """Of a prefill step."""
        return self.flops / (self.step_ms.median / 1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCaseResult:
    """One case.

    Attributes:
        times: None where a run has no step to measure.
        undone: what of the work was not done, in whichever run, that of `case.without` included.
        peers: at most transformers + PEFT; vLLM tells no steps.
    """

    case: StepCase
    times: StepTimes | None
    undone: tuple[str, ...]
    peers: Peers

    def step_limits(self) -> Iterator[Limit]:
        """What the recipe requires of the step, where it was measured."""
        case, times = self.case, self.times
        if times and case.at_most is not None:
            yield _at_most("the step takes", times.times_floor, case.at_most)
        if times and case.rate_at_least is not None:
            rate, at_least = times.of_product_rate, case.rate_at_least
            sentence = (
                f"prefill reaches {rate:.2%} of the matrix product rate; the recipe requires {at_least:.0%}"
            )
            yield Limit(rate >= at_least, sentence)

    def lora_limits(self) -> Iterator[Limit]:
        """What the recipe requires of the added time, where it was measured."""
        case, lora = self.case, self.times and self.times.lora
        if lora and case.lora_at_most is not None:
            yield _at_most("the added time is", lora.times_floor, case.lora_at_most)
        if lora and case.lora_share_at_most is not None:
            share, at_most = lora.share.median, case.lora_share_at_most
            sentence = f"the added time is {share:.2%} of the step; the recipe allows {at_most:.0%}"
            yield Limit(share <= at_most, sentence)

    def step_doubts(self) -> Iterator[str]:
        """Why the step's time cannot be right."""
        case, times = self.case, self.times if self.case.is_timed else None
        if times and case.measure is Measure.DECODE and times.times_floor < _LEAST_TIMES_FLOOR:
            yield f"the step takes {times.times_floor:.3f}x its floor, less than the device can"
        if times and case.measure is Measure.PREFILL and times.of_product_rate > _MOST_OF_PRODUCT_RATE:
            yield f"prefill reaches {times.of_product_rate:.2%} of the matrix product rate"

    def lora_doubts(self) -> Iterator[str]:
        """Why the added time cannot be right."""
        lora = self.times and self.times.lora
        if lora and self.case.is_timed and lora.part_ms.median <= 0:
            yield f"the added time is {lora.part_ms.median:.3f} ms, though adapters are work"

    @property
    def step_verdict(self) -> Verdict:
        """On the step alone."""
        return self._verdict_on(self.step_limits(), self.step_doubts())

    @property
    def lora_verdict(self) -> Verdict:
        """On the added time alone."""
        return self._verdict_on(self.lora_limits(), self.lora_doubts())

    @property
    def verdict(self) -> Verdict:
        return worst_verdict((self.step_verdict, self.lora_verdict))

    def _verdict_on(self, limits: Iterable[Limit], doubts: Iterable[str]) -> Verdict:
        if self.undone or self.times is None or any(doubts):
            return Verdict.CANNOT_TELL
        return Verdict.MET if all(limit.is_met for limit in limits) else Verdict.MISSED

    def as_json(self) -> dict[str, object]:
        """The case's own keys first, then what was measured."""
        return {
            **dataclasses.asdict(self.case),
            **_times_json(self.case, self.times),
            "undone": list(self.undone),
            "doubts": [*self.step_doubts(), *self.lora_doubts()],
            "peers": self.peers.as_json(),
            "verdict": self.verdict,
        }


def _times_json(case: StepCase, times: StepTimes | None) -> dict[str, object]:
    if times is None:
        return {}
    values: dict[str, object] = {
        "step_ms": dataclasses.asdict(times.step_ms),
        "num_steps": list(times.num_steps),
        "floor_ms": times.floor_ms,
        "times_floor": times.times_floor,
    }
    if case.measure is Measure.DECODE:
        values |= {"context_tokens": times.context_tokens}
    else:
        values |= {"flops_per_s": times.flops_per_s, "of_product_rate": times.of_product_rate}
    return values if times.lora is None else {**values, "lora": times.lora.as_json()}


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a benchmark of steps found, and where."""

    facts: EngineFacts
    cases: tuple[StepCaseResult, ...]

    @property
    def verdict(self) -> Verdict:
        return worst_verdict(case.verdict for case in self.cases)

    def as_json(self) -> dict[str, object]:
        """The content of the file that `--json` writes."""
        return {
            "kind": STEPS,
            **self.facts.as_json(),
            "cases": [case.as_json() for case in self.cases],
            "verdict": self.verdict,
        }
