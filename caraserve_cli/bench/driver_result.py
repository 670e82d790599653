"""From runs of a fleet's driver to numbers and a verdict. Knows no torch and no files."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from caraserve_cli.bench.comparison import Spread, Verdict
from caraserve_cli.bench.driver_recipe import DRIVER, DriverRecipe
from caraserve_cli.bench.engine_result import worst_verdict
from caraserve_cli.bench.result_facts import MeasuredFacts


@dataclass(frozen=True, slots=True)
class DriverRun:
    """One run: how long it took, how many of its requests were answered, which replicas died, in words."""

    seconds: float
    num_answered: int
    deaths: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverCase:
    """The driver over replicas that are somewhere.

    Attributes:
        requests_per_s: of each repeat; None where it was not measured.
        problem: why it was not, or what was wrong; None where all is well.
        at_least: what is required; None for nothing.
    """

    name: str
    requests_per_s: Spread | None
    problem: str | None
    at_least: float | None

    @property
    def verdict(self) -> Verdict:
        """What is not there and not required keeps nobody from passing."""
        if self.requests_per_s is None:
            return Verdict.MET if self.at_least is None else Verdict.CANNOT_TELL
        if self.problem is not None:
            return Verdict.CANNOT_TELL
        is_met = self.at_least is None or self.requests_per_s.median >= self.at_least
        return Verdict.MET if is_met else Verdict.MISSED


def judge_driver(
    name: str, runs: Sequence[DriverRun], num_requests: int, at_least: float | None
) -> DriverCase:
    """What the repeats of one case say, of which there is at least one."""
    fewest = min(run.num_answered for run in runs)
    problem = next((death for run in runs for death in run.deaths), None)
    if fewest < num_requests:
        problem = f"{num_requests - fewest:,} of {num_requests:,} requests were not answered"
    return DriverCase(
        name=name,
        requests_per_s=Spread.of([num_requests / run.seconds for run in runs]),
        problem=problem,
        at_least=at_least,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverResult:
    """What a benchmark of a driver found, and where."""

    recipe: DriverRecipe
    facts: MeasuredFacts
    cases: tuple[DriverCase, ...]

    @property
    def verdict(self) -> Verdict:
        return worst_verdict(case.verdict for case in self.cases)

    def as_json(self) -> dict[str, object]:
        """The content of the file that `--json` writes."""
        return {
            "kind": DRIVER,
            "recipe": self.recipe.name,
            **{key: value for key, value in dataclasses.asdict(self.recipe).items() if key != "name"},
            **self.facts.as_json(),
            "cases": [{**dataclasses.asdict(case), "verdict": case.verdict} for case in self.cases],
            "verdict": self.verdict,
        }
