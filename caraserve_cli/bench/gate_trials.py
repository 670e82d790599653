"""Whether the regression gate keeps its word on this machine: each try records a recipe anew and compares it
with that recording, the same build or one that is slowed on purpose. Prints nothing and writes no file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from caraserve_cli.bench.gated_run import run_gated
from caraserve_cli.bench.judged_metric import GateVerdict
from caraserve_cli.errors import ExitStatus

# The share of tries on a slowed build in which that must be found; the same build must never be.
_FOUND_SHARE = 0.95

# Told after each try: its number, and what the gate said.
OnTry = Callable[[int, GateVerdict], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class GateTrials:
    """What the gate said, try by try.

    Attributes:
        slow_decode: by what factor the compared build's decoding steps were slowed; None for the same build.
    """

    verdicts: tuple[GateVerdict, ...]
    slow_decode: float | None

    @property
    def num_right(self) -> int:
        """Tries in which the gate said what it promises to."""
        count = Counter(self.verdicts)
        if self.slow_decode is None:
            return len(self.verdicts) - count[GateVerdict.REGRESSED]
        return count[GateVerdict.REGRESSED]

    @property
    def num_needed(self) -> float:
        return len(self.verdicts) * (1.0 if self.slow_decode is None else _FOUND_SHARE)

    @property
    def exit_status(self) -> int:
        return ExitStatus.OK if self.num_right >= self.num_needed else ExitStatus.REGRESSED

    def describe(self) -> str:
        """In two lines."""
        count = Counter(self.verdicts)
        said = ", ".join(f"{verdict} {count[verdict]}" for verdict in GateVerdict)
        tries = f"{self.num_right} of {len(self.verdicts)} tries"
        if self.slow_decode is None:
            right = f"the same build held, or could not be told, in {tries}; all must"
        else:
            slowed = f"a build whose decoding steps take {self.slow_decode:g} times as long"
            right = f"{slowed} was found in {tries}; {_FOUND_SHARE:.0%} must be"
        kept = "keeps" if self.exit_status == ExitStatus.OK else "does not keep"
        return f"{said}\nThe gate {kept} its word: {right}."


def try_gate(
    recipe: Path, num_tries: int, budget_s: float, slow_decode: float | None, on_try: OnTry
) -> GateTrials:
    """Try it; a try takes two budgets.

    Args:
        slow_decode: see `GateTrials`.

    Raises:
        OptionError: a rule of the recipe fits no metric.
        InputError: nothing could be measured, or a part of a baseline's work was not done.
    """
    verdicts: list[GateVerdict] = []
    for number in range(1, num_tries + 1):
        baseline = run_gated(recipe, None, budget_s).recording
        gate = run_gated(recipe, baseline, budget_s, slow_decode=slow_decode).gate
        assert gate is not None, "there is a baseline"
        verdicts.append(gate.verdict)
        on_try(number, gate.verdict)
    return GateTrials(verdicts=tuple(verdicts), slow_decode=slow_decode)
