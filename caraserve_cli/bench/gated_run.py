"""A recipe measured in rounds: until its metrics are known well enough to be recorded, or to be compared with
a baseline, or the budget is spent. Prints nothing and writes no file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caraserve_cli.bench.gate import GateResult, judge, recording_is_narrow
from caraserve_cli.bench.gate_rules import parse_gate_rules
from caraserve_cli.bench.paper import PaperComparison, compare_with_paper, parse_paper
from caraserve_cli.bench.recipe_file import read_recipe
from caraserve_cli.bench.recording import Recording, make_recording, recipe_digest
from caraserve_cli.bench.rounds import Round, run_rounds
from caraserve_cli.errors import ExitStatus, InputError

# Told after each round: its number, and whether more are worth their time.
OnRound = Callable[[int, bool], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedRun:
    """What was measured.

    Attributes:
        gate: None without a baseline.
        last: of the rounds.
        comparison: of the medians of all rounds with what a paper reports; None where the recipe has none.
    """

    recording: Recording
    gate: GateResult | None
    last: Round
    comparison: PaperComparison | None


def _tell_nobody(number: int, is_settled: bool) -> None:
    """An `OnRound` for who does not want to know."""


def run_gated(
    recipe: Path,
    baseline: Recording | None,
    budget_s: float,
    on_round: OnRound = _tell_nobody,
    *,
    slow_decode: float | None = None,
) -> GatedRun:
    """Measure until narrow or until the budget is spent, and judge.

    Args:
        baseline: None to measure what can be a baseline.
        slow_decode: by what factor decoding steps are slowed on purpose; None for not at all.

    Raises:
        OptionError: a rule of the recipe fits no metric.
        InputError: nothing could be measured, or without a baseline a part of the work was not done.
    """
    rounds: list[Round] = []
    undone: dict[str, None] = {}
    for number, each in enumerate(run_rounds(recipe, budget_s, slow_decode), 1):
        rounds.append(each)
        if each.exit_status == ExitStatus.CANNOT_TELL:
            undone[f"in run {number} work was not done, or not the same"] = None
            if baseline is None:
                raise InputError(
                    f"--record: nothing was recorded, for '{recipe}' cannot tell; caraserve bench says why"
                )
        recording = record_results(recipe, [one.result for one in rounds])
        gate = None if baseline is None else judge(baseline, recording, tuple(undone))
        is_settled = recording_is_narrow(recording) if gate is None else gate.is_settled or bool(undone)
        on_round(number, is_settled)
        if is_settled:
            break
    paper = parse_paper(read_recipe(recipe))
    return GatedRun(
        recording=recording,
        gate=gate,
        last=rounds[-1],
        comparison=None if paper is None else compare_with_paper(paper, [each.result for each in rounds]),
    )


def record_results(recipe: Path, results: list[Mapping[str, Any]], *, each_repeat: bool = False) -> Recording:
    """Results of one recipe as a recording; see `make_recording`."""
    table = read_recipe(recipe)
    rules = parse_gate_rules(table)
    return make_recording(recipe.stem, recipe_digest(table.values), rules, results, each_repeat=each_repeat)
