"""From runs of the engine and of the simulator to how far they are apart, and a verdict. Knows no torch and
no files.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from caraserve_cli.bench.comparison import Spread, Verdict
from caraserve_cli.bench.engine_result import EngineFacts, worst_verdict
from caraserve_cli.bench.serving_run import ServingRun
from caraserve_cli.bench.simulator_recipe import SIMULATOR, SimulatorCase

# Of `serving_recipe.MEASURES`, those that are compared.
MEASURES = ("mean_ttft", "mean_tpot", "mean_latency")


@dataclass(frozen=True, slots=True, kw_only=True)
class Apart:
    """One figure, measured and simulated; of each repeat.

    Attributes:
        ratio: simulated over measured.
        is_within: whether the medians are near enough.
    """

    measured: Spread
    simulated: Spread
    ratio: float
    is_within: bool

    def as_json(self) -> dict[str, object]:
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedRate:
    """One rate.

    Attributes:
        measures: each of MEASURES that is defined, in milliseconds.
        attainment: share of requests within their bounds; None where they carry none.
        corrected_ratios: of the measures, simulated by the profile as the steps of the warm-ups correct it;
            they decide nothing. Empty where nothing was corrected.
    """

    rate_per_s: int
    measures: Mapping[str, Apart]
    attainment: Apart | None
    corrected_ratios: Mapping[str, float]

    @property
    def is_within(self) -> bool:
        compared = [*self.measures.values(), *([self.attainment] if self.attainment else [])]
        return all(each.is_within for each in compared)

    def as_json(self) -> dict[str, object]:
        return {
            "name": f"{self.rate_per_s}/s",
            "rate_per_s": self.rate_per_s,
            "measures": {name: each.as_json() for name, each in self.measures.items()},
            "attainment": self.attainment and self.attainment.as_json(),
            "corrected_ratios": dict(self.corrected_ratios),
            "is_within": self.is_within,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatorCaseResult:
    """One case.

    Attributes:
        has_lora_model: whether the profile says what adapters add to steps; without, they add nothing in the
            simulation.
        undone: what of the work was not done, in whichever run.
    """

    case: SimulatorCase
    has_lora_model: bool
    rates: tuple[SimulatedRate, ...]
    undone: tuple[str, ...]

    @property
    def verdict(self) -> Verdict:
        if self.undone:
            return Verdict.CANNOT_TELL
        return Verdict.MET if all(rate.is_within for rate in self.rates) else Verdict.MISSED

    def as_json(self) -> dict[str, object]:
        """The case's own keys first, then what was found."""
        return {
            **dataclasses.asdict(self.case),
            "has_lora_model": self.has_lora_model,
            "rates": [rate.as_json() for rate in self.rates],
            "undone": list(self.undone),
            "verdict": self.verdict,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatorResult:
    """What a benchmark of the simulator found, and where; the profile is of `profile_measured_at`."""

    facts: EngineFacts
    profile_measured_at: str
    cases: tuple[SimulatorCaseResult, ...]

    @property
    def verdict(self) -> Verdict:
        return worst_verdict(case.verdict for case in self.cases)

    def as_json(self) -> dict[str, object]:
        """The content of the file that `--json` writes."""
        return {
            "kind": SIMULATOR,
            **self.facts.as_json(),
            "profile_measured_at": self.profile_measured_at,
            "cases": [case.as_json() for case in self.cases],
            "verdict": self.verdict,
        }


def compare_rate(
    case: SimulatorCase,
    rate_per_s: int,
    measured: Sequence[ServingRun],
    simulated: Sequence[ServingRun],
    corrected: Sequence[ServingRun],
) -> SimulatedRate:
    """The repeats of the engine and of the simulator at one rate; each answered something."""
    ours, theirs = [run.measured_ms() for run in measured], [run.measured_ms() for run in simulated]
    better = [run.measured_ms() for run in corrected]
    measures: dict[str, Apart] = {}
    for name in MEASURES:
        if all(name in each for each in (*ours, *theirs)):
            of_measured, of_simulated = (
                Spread.of([e[name] for e in ours]),
                Spread.of([e[name] for e in theirs]),
            )
            ratio = of_simulated.median / of_measured.median
            measures[name] = Apart(
                measured=of_measured,
                simulated=of_simulated,
                ratio=ratio,
                is_within=case.within is None or 1 / case.within <= ratio <= case.within,
            )
    return SimulatedRate(
        rate_per_s=rate_per_s,
        measures=measures,
        attainment=_compare_attainment(case, measured, simulated),
        corrected_ratios={
            name: Spread.of([each[name] for each in better]).median / apart.measured.median
            for name, apart in measures.items()
            if better
        },
    )


def _compare_attainment(
    case: SimulatorCase, measured: Sequence[ServingRun], simulated: Sequence[ServingRun]
) -> Apart | None:
    shares = [[run.slo_attainment for run in runs] for runs in (measured, simulated)]
    ours, theirs = ([share for share in of_runs if share is not None] for of_runs in shares)
    if not ours or not theirs:
        return None
    of_measured, of_simulated = Spread.of(ours), Spread.of(theirs)
    most, apart = case.attainment_within, abs(of_simulated.median - of_measured.median)
    return Apart(
        measured=of_measured,
        simulated=of_simulated,
        ratio=of_simulated.median / of_measured.median if of_measured.median else float("inf"),
        # 80% and 70% are further apart than 0.1, as floats are.
        is_within=most is None or apart <= most or math.isclose(apart, most),
    )
