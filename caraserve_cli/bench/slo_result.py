"""From the runs of a benchmark of scheduling to numbers and a verdict. Knows no torch and no files."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from caraserve_cli.bench.comparison import Spread, Verdict
from caraserve_cli.bench.engine_result import EngineFacts, worst_verdict
from caraserve_cli.bench.serving_run import ServingRun
from caraserve_cli.bench.slo_recipe import SLO, SloCase
from caraserve_cli.bench.virtual_machine import VirtualFacts
from caraserve_cli.core import Bounds


@dataclass(frozen=True, slots=True, kw_only=True)
class RateResult:
    """What one policy gave at one rate; of each repeat."""

    rate_per_s: int
    attainment: Spread
    mean_ttft_ms: Spread
    mean_tpot_ms: Spread | None
    output_tokens_per_s: Spread


@dataclass(frozen=True, slots=True, kw_only=True)
class SloCaseResult:
    """One case.

    Attributes:
        bounds: that the requests carried.
        base_tpot_ms: mean TPOT without adapters, of which the TPOT bound is a multiple; None without one.
        has_step_model: whether a profile of this machine told the policies how long steps take.
        rates: policy → what it gave at each rate, ascending.
        undone: what of the work was not done, in whichever run.
    """

    case: SloCase
    bounds: Bounds
    base_tpot_ms: float | None
    has_step_model: bool
    rates: Mapping[str, Sequence[RateResult]]
    undone: tuple[str, ...]

    def held_rate_per_s(self, policy: str) -> int | None:
        """The highest rate up to which, in the median of the repeats, so many requests as the case says met
        their bounds at every rate; None where not even the lowest was held."""
        held = None
        for each in self.rates[policy]:
            if each.attainment.median < self.case.attained:
                break
            held = each.rate_per_s
        return held

    @property
    def ratio(self) -> float | None:
        """The first policy's held rate over the second's; None where one held none. Where the first held all
        of them it may hold more."""
        first, second = (self.held_rate_per_s(policy) for policy in self.case.scheduling)
        return None if first is None or second is None else first / second

    @property
    def verdict(self) -> Verdict:
        if self.undone:
            return Verdict.CANNOT_TELL
        if self.case.ratio_at_least is None:
            return Verdict.MET
        if self.ratio is None:
            return Verdict.CANNOT_TELL
        if self.ratio >= self.case.ratio_at_least:
            return Verdict.MET
        # Both may hold more than was asked of them.
        is_open = self.held_rate_per_s(self.case.scheduling[0]) == self.case.rates_per_s[-1]
        return Verdict.CANNOT_TELL if is_open else Verdict.MISSED

    def as_json(self) -> dict[str, object]:
        """The case's own keys first, then what was measured."""
        return {
            **dataclasses.asdict(self.case),
            "bounds": dataclasses.asdict(self.bounds),
            "base_tpot_ms": self.base_tpot_ms,
            "has_step_model": self.has_step_model,
            "results": {
                policy: [{"name": f"{each.rate_per_s}/s", **dataclasses.asdict(each)} for each in rates]
                for policy, rates in self.rates.items()
            },
            "held_rate_per_s": {policy: self.held_rate_per_s(policy) for policy in self.case.scheduling},
            "ratio": self.ratio,
            "undone": list(self.undone),
            "verdict": self.verdict,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class SloResult:
    """What a benchmark of scheduling found, and where."""

    facts: EngineFacts | VirtualFacts
    cases: tuple[SloCaseResult, ...]

    @property
    def verdict(self) -> Verdict:
        return worst_verdict(case.verdict for case in self.cases)

    def as_json(self) -> dict[str, object]:
        """The content of the file that `--json` writes."""
        return {
            "kind": SLO,
            **self.facts.as_json(),
            "cases": [case.as_json() for case in self.cases],
            "verdict": self.verdict,
        }


def summarise_rate(rate_per_s: int, runs: Sequence[ServingRun]) -> RateResult:
    """The repeats of one policy at one rate; each answered something."""
    measured_ms = [run.measured_ms() for run in runs]
    tpot_ms = [each["mean_tpot"] for each in measured_ms if "mean_tpot" in each]
    return RateResult(
        rate_per_s=rate_per_s,
        attainment=Spread.of([run.slo_attainment or 0.0 for run in runs]),
        mean_ttft_ms=Spread.of([each["mean_ttft"] for each in measured_ms]),
        mean_tpot_ms=Spread.of(tpot_ms) if len(tpot_ms) == len(runs) else None,
        output_tokens_per_s=Spread.of([run.output_tokens_per_s or 0.0 for run in runs]),
    )
