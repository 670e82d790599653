from __future__ import annotations

import pytest

from caraserve_cli.bench.comparison import Verdict, compare
from caraserve_cli.bench.recipe import Requirement
from caraserve_cli.bench.system import SystemRun
from caraserve_cli.errors import ExitStatus

ANSWERS = {"a": (1, 2, 3), "b": (4,)}


def runs(*seconds: float, answers: dict[str, tuple[int, ...]] | None = None) -> list[SystemRun]:
    return [SystemRun(answers=answers or ANSWERS, seconds=each) for each in seconds]


def require(at_least: float) -> list[Requirement]:
    return [Requirement(ours="ours", over="theirs", at_least=at_least)]


def test_medians_spread_and_ratios_repeat_by_repeat() -> None:
    comparison = compare({"ours": runs(1.0, 2.0, 4.0), "theirs": runs(2.0, 8.0, 12.0)}, require(3.0))
    ours, theirs = comparison.systems
    assert ours.tokens_per_s.values == (4.0, 2.0, 1.0)
    assert (ours.tokens_per_s.median, ours.seconds.lowest, ours.seconds.highest) == (2.0, 1.0, 4.0)
    assert theirs.output_tokens == 4
    (ratio,) = comparison.ratios
    assert ratio.ratio.values == (2.0, 4.0, 3.0)
    assert comparison.verdict is Verdict.MET


@pytest.mark.parametrize(("at_least", "verdict"), [(2.0, Verdict.MET), (2.01, Verdict.MISSED)])
def test_a_requirement_is_on_the_median_ratio(at_least: float, verdict: Verdict) -> None:
    comparison = compare({"ours": runs(1.0), "theirs": runs(2.0)}, require(at_least))
    assert comparison.verdict is verdict


def test_other_answers_mean_other_work() -> None:
    wrong = runs(50.0) + runs(50.0, answers={"a": (1, 2, 4), "b": (4,)})
    comparison = compare({"ours": runs(1.0, 1.0), "theirs": wrong}, require(2.0))
    assert [system.name for system in comparison.disagreeing] == ["theirs"]
    assert comparison.systems[1].equal_answers == 1
    assert comparison.verdict is Verdict.CANNOT_TELL
    assert comparison.verdict.exit_status == ExitStatus.CANNOT_TELL


def test_the_first_system_is_compared_with_each_other_and_then_what_is_required() -> None:
    measured = {"x": runs(1.0), "y": runs(4.0), "z": runs(2.0)}
    requirements = [
        Requirement(ours="z", over="y", at_least=2.0),
        Requirement(ours="x", over="y", at_least=3.0),
    ]
    comparison = compare(measured, requirements)
    assert [(each.ours, each.over, each.ratio.median, each.at_least) for each in comparison.ratios] == [
        ("x", "y", 4.0, 3.0),
        ("x", "z", 2.0, None),
        ("z", "y", 2.0, 2.0),
    ]
    assert comparison.verdict is Verdict.MET


def test_one_missed_requirement_is_enough() -> None:
    measured = {"ours": runs(1.0), "theirs": runs(2.0), "z": runs(9.0)}
    met = Requirement(ours="ours", over="z", at_least=5.0)
    assert compare(measured, [met, *require(3.0)]).verdict is Verdict.MISSED


def test_without_requirements_nothing_is_missed() -> None:
    assert compare({"ours": runs(5.0), "theirs": runs(1.0)}, ()).verdict is Verdict.MET


@pytest.mark.parametrize("other", [{"a": (1, 2), "b": (4,)}, {"a": (1, 2, 3)}], ids=["shorter", "missing"])
def test_less_work_is_other_work(other: dict[str, tuple[int, ...]]) -> None:
    comparison = compare({"ours": runs(1.0), "theirs": runs(50.0, answers=other)}, require(2.0))
    assert comparison.verdict is Verdict.CANNOT_TELL


def test_a_system_must_agree_with_itself() -> None:
    measured = {"ours": [*runs(1.0), *runs(1.0, answers={**ANSWERS, "a": (1,)})]}
    assert compare(measured, ()).verdict is Verdict.CANNOT_TELL
