"""From the runs of a serving benchmark to numbers and a verdict. Knows no torch and no files."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from caraserve_cli.bench.cold_starts import CACHED
from caraserve_cli.bench.comparison import Spread, Verdict
from caraserve_cli.bench.confidence import Interval, mean_interval
from caraserve_cli.bench.engine_result import EngineFacts, worst_verdict
from caraserve_cli.bench.serving_recipe import (
    MEASURES,
    SERVING,
    STEP_BESIDE_LOAD,
    ServingCase,
    ServingRequirement,
)
from caraserve_cli.bench.serving_run import ServingRun, ratio_of


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseRuns:
    """What was run of a case: strategy → its repeats, of which there is at least one.

    Attributes:
        rate_per_s: of the arrivals.
        saturation_per_s: requests a second when all are there at once and all adapters on the device; None
            where `cached` is not compared.
    """

    rate_per_s: float
    saturation_per_s: float | None
    runs: Mapping[str, Sequence[ServingRun]]


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategyResult:
    """One strategy's repeats; a value is None where it is not defined in each of them.

    Attributes:
        measured_ms: each of MEASURES.
        over_cached: each of MEASURES, and STEP_BESIDE_LOAD, as a ratio to `cached`, repeat by repeat; None
            where that is not compared.
        cold_starts: of each repeat, how many requests came by their adapters in which way.
        unanswered: of each repeat, see `ServingRun`.
    """

    strategy: str
    measured_ms: Mapping[str, Spread | None]
    over_cached: Mapping[str, Spread | None]
    output_tokens_per_s: Spread | None
    slo_attainment: Spread | None
    cold_starts: tuple[Mapping[str, int], ...]
    unanswered: tuple[tuple[float, float], ...]
    kept_up: bool

    def as_json(self) -> dict[str, object]:
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A requirement, and what was measured, repeat by repeat: None where it is undefined in one of them.

    Attributes:
        interval: of the mean over the repeats; None for few of them. It tells how sure the number is, and
            decides nothing.
    """

    requirement: ServingRequirement
    measured: Spread | None
    interval: Interval | None

    @property
    def verdict(self) -> Verdict:
        if self.measured is None:
            return Verdict.CANNOT_TELL
        return Verdict.MET if self.requirement.is_met_by(self.measured.median) else Verdict.MISSED

    def as_json(self) -> dict[str, object]:
        values = dataclasses.asdict(self)
        return {**values.pop("requirement"), **values, "verdict": self.verdict}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingCaseResult:
    """One case.

    Attributes:
        undone: what of the work was not done, in whichever run.
    """

    case: ServingCase
    rate_per_s: float
    saturation_per_s: float | None
    strategies: tuple[StrategyResult, ...]
    judged: tuple[Judged, ...]
    undone: tuple[str, ...]

    @property
    def load(self) -> float | None:
        """The rate as a share of saturation."""
        return None if self.saturation_per_s is None else self.rate_per_s / self.saturation_per_s

    @property
    def verdict(self) -> Verdict:
        if self.undone:
            return Verdict.CANNOT_TELL
        return worst_verdict((Verdict.MET, *(each.verdict for each in self.judged)))

    def as_json(self) -> dict[str, object]:
        """The case's own keys first, then what was measured."""
        case = dataclasses.asdict(self.case)
        del case["requirements"]
        return {
            **case,
            "rate_per_s": self.rate_per_s,
            "saturation_per_s": self.saturation_per_s,
            "load": self.load,
            "is_link_emulated": self.case.link_gbps is not None,
            "results": [each.as_json() for each in self.strategies],
            "requirements": [each.as_json() for each in self.judged],
            "undone": list(self.undone),
            "verdict": self.verdict,
        }


def judge_serving(case: ServingCase, done: CaseRuns) -> ServingCaseResult:
    """What the measured runs of a case say."""
    undone = {
        f"with {strategy} {run.undone}": None
        for strategy, runs in done.runs.items()
        for run in runs
        if run.undone is not None
    }
    return ServingCaseResult(
        case=case,
        rate_per_s=done.rate_per_s,
        saturation_per_s=done.saturation_per_s,
        strategies=tuple(
            _strategy_result(strategy, runs, done.runs.get(CACHED)) for strategy, runs in done.runs.items()
        ),
        judged=tuple(_judge(required, done.runs) for required in case.requirements),
        undone=tuple(undone),
    )


def _strategy_result(
    strategy: str, runs: Sequence[ServingRun], cached: Sequence[ServingRun] | None
) -> StrategyResult:
    measured_ms = [run.measured_ms() for run in runs]
    over_cached: dict[str, Spread | None] = {}
    if cached is not None and cached is not runs:
        over_cached = {name: _ratios(runs, cached, name) for name in (*MEASURES, STEP_BESIDE_LOAD)}
    return StrategyResult(
        strategy=strategy,
        measured_ms={name: _spread(each.get(name) for each in measured_ms) for name in MEASURES},
        over_cached=over_cached,
        output_tokens_per_s=_spread(run.output_tokens_per_s for run in runs),
        slo_attainment=_spread(run.slo_attainment for run in runs),
        cold_starts=tuple(run.cold_starts for run in runs),
        unanswered=tuple(run.unanswered for run in runs),
        kept_up=all(run.kept_up for run in runs),
    )


def _judge(required: ServingRequirement, runs: Mapping[str, Sequence[ServingRun]]) -> Judged:
    ours = runs[required.strategy]
    if required.over is None:
        measured = _spread(run.measured_ms().get(required.measure) for run in ours)
    else:
        measured = _ratios(ours, runs[required.over], required.measure)
    interval = None if measured is None else mean_interval(measured.values)
    return Judged(requirement=required, measured=measured, interval=interval)


def _ratios(ours: Sequence[ServingRun], over: Sequence[ServingRun], measured: str) -> Spread | None:
    """Repeat by repeat: both had the same arrivals, and saw the same state of the machine."""
    return _spread(ratio_of(a, b, measured) for a, b in zip(ours, over, strict=True))


def _spread(values: Iterable[float | None]) -> Spread | None:
    found = list(values)
    defined = [value for value in found if value is not None]
    return Spread.of(defined) if len(defined) == len(found) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingResult:
    """What a serving benchmark found, and where."""

    facts: EngineFacts
    cases: tuple[ServingCaseResult, ...]

    @property
    def verdict(self) -> Verdict:
        return worst_verdict(case.verdict for case in self.cases)

    def as_json(self) -> dict[str, object]:
        """The content of the file that `--json` writes."""
        return {
            "kind": SERVING,
            **self.facts.as_json(),
            "cases": [case.as_json() for case in self.cases],
            "verdict": self.verdict,
        }
