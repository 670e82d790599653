"""From runs to numbers and a verdict: medians, spreads, ratios, requirements. Knows no torch and no files."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from caraserve_cli.bench.recipe import Requirement
from caraserve_cli.bench.system import SystemRun
from caraserve_cli.errors import ExitStatus


class Verdict(StrEnum):
    """What a benchmark found."""

    MET = "met"
    MISSED = "missed"
    CANNOT_TELL = "cannot-tell"

    @property
    def exit_status(self) -> int:
        return {
            Verdict.MET: ExitStatus.OK,
            Verdict.MISSED: ExitStatus.REGRESSED,
            Verdict.CANNOT_TELL: ExitStatus.CANNOT_TELL,
        }[self]


@dataclass(frozen=True, slots=True)
class Spread:
    """The values of all repeats, in order, and their median and extremes."""

    values: tuple[float, ...]
    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(tuple(values), statistics.median(values), min(values), max(values))


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemResult:
    """One system's runs.

    Attributes:
        output_tokens: of its first run.
        equal_answers: requests whose tokens equal the reference's (the first system's first run) in *every*
            run of this system.
    """

    name: str
    output_tokens: int
    seconds: Spread
    tokens_per_s: Spread
    equal_answers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """Output tokens a second of `ours` over those of `over`, repeat by repeat.

    Two runs of the same repeat saw the same state of the machine, so that their ratio is steadier than that
    of two medians. `at_least` is None where the recipe requires nothing.
    """

    ours: str
    over: str
    ratio: Spread
    at_least: float | None

    @property
    def is_met(self) -> bool:
        return self.at_least is None or self.ratio.median >= self.at_least


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All systems of a recipe."""

    reference: str
    num_requests: int
    systems: tuple[SystemResult, ...]
    ratios: tuple[Ratio, ...]

    @property
    def disagreeing(self) -> tuple[SystemResult, ...]:
        """Systems that did other work than the reference, so that no ratio with them means anything."""
        return tuple(each for each in self.systems if each.equal_answers < self.num_requests)

    @property
    def verdict(self) -> Verdict:
        if self.disagreeing:
            return Verdict.CANNOT_TELL
        return Verdict.MET if all(ratio.is_met for ratio in self.ratios) else Verdict.MISSED


def compare(runs: Mapping[str, Sequence[SystemRun]], requirements: Sequence[Requirement]) -> Comparison:
    """Judge measured runs; each system has as many as every other, at least one.

    The ratios are those of the first system over each of the others, then what else is required.
    """
    reference = next(iter(runs))
    answers = runs[reference][0].answers
    at_least = {(each.ours, each.over): each.at_least for each in requirements}
    pairs = dict.fromkeys([*((reference, other) for other in runs if other != reference), *at_least])
    return Comparison(
        reference=reference,
        num_requests=len(answers),
        systems=tuple(_system_result(name, of_system, answers) for name, of_system in runs.items()),
        ratios=tuple(
            Ratio(
                ours=ours,
                over=over,
                ratio=_ratio(runs[ours], runs[over]),
                at_least=at_least.get((ours, over)),
            )
            for ours, over in pairs
        ),
    )


def _system_result(
    name: str, runs: Sequence[SystemRun], reference: Mapping[str, tuple[int, ...]]
) -> SystemResult:
    return SystemResult(
        name=name,
        output_tokens=runs[0].num_output_tokens,
        seconds=Spread.of([run.seconds for run in runs]),
        tokens_per_s=Spread.of([run.tokens_per_s for run in runs]),
        equal_answers=sum(
            all(run.answers.get(request_id) == tokens for run in runs)
            for request_id, tokens in reference.items()
        ),
    )


def _ratio(ours: Sequence[SystemRun], over: Sequence[SystemRun]) -> Spread:
    return Spread.of([a.tokens_per_s / b.tokens_per_s for a, b in zip(ours, over, strict=True)])
