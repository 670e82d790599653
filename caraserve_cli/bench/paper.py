"""What a paper reports of an experiment that a recipe of whatever kind does again, and what differs.

    [paper]
    title = "Toppings (CaraServe), USENIX ATC 2025, arXiv 2401.11240"
    where = "evaluation, S3"
    setting = "Llama-2-7B, rank 64, …"    # what they measured, on what
    differences = ["their GPU is …"]      # every one that a reader must know to compare
    [[paper.reported]]
    metric = "mean TTFT over CACHED"
    system = "S-LoRA"                     # theirs
    here = "on-demand-blocking"           # optional: what of ours stands for it, where that is not plain
    value = 1.82                          # what they report; left out where they have no such figure
    up_to = 1.9                           # optional: `value` to that
    unit = "x"                            # or "ms", …; "%" prints the share 0.22 as 22%; optional
    figure = "S3: on-demand-blocking: over_cached: mean_ttft"    # ours: its name (`figures`), * for anything;
                                          # left out where nothing of ours stands beside it, which the
                                          # differences then explain
    over = "S3: cached: mean_ttft"        # optional: ours is the ratio of `figure` to that
    less = true                           # optional, with `over`: ours is 1 less that ratio

Knows no torch and measures nothing.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from caraserve_cli.bench.figures import find_figure
from caraserve_cli.bench.recipe_table import RecipeTable

# In the JSON of a result; no figure of ours.
PAPER = "paper"
# Of the columns of a comparison, wherever it is written.
COMPARISON_HEADS = ("as the paper has it", "their system", "stands for it here", "paper", "here")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """One figure of the paper, and the name of ours; see the module's text.

    Attributes:
        value: None where the paper has no such figure.
        up_to: the other end of a range; None for a single value.
        figure: None where nothing of ours stands beside it.
    """

    metric: str
    system: str
    here: str | None
    value: float | None
    up_to: float | None
    unit: str
    figure: str | None
    over: str | None
    less: bool

    @property
    def theirs(self) -> str:
        """What the paper reports, in words; a dash for nothing."""
        ends = [end for end in (self.value, self.up_to) if end is not None]
        return " to ".join(in_unit(end, self.unit) for end in ends) or "-"

    def of(self, result: Mapping[str, object]) -> float | None:
        """Ours in a result as JSON; None where the result does not have it."""
        if self.figure is None:
            return None
        ours = find_figure(result, self.figure)
        if ours is None or self.over is None:
            return ours
        below = find_figure(result, self.over)
        if not below:
            return None
        return 1 - ours / below if self.less else ours / below


@dataclass(frozen=True, slots=True, kw_only=True)
class Paper:
    """The paper's side of one experiment."""

    title: str
    where: str
    setting: str
    differences: tuple[str, ...]
    reported: tuple[Reported, ...]

    @property
    def heading(self) -> str:
        """What was measured, and where it stands."""
        return f"{self.title}, {self.where}: {self.setting}"


@dataclass(frozen=True, slots=True)
class PaperComparison:
    """The paper's side, and ours: of each reported figure, None where a result does not have it."""

    paper: Paper
    ours: tuple[float | None, ...]

    @property
    def rows(self) -> list[tuple[str, str, str, str, str]]:
        """Metric, their system, what stands for it here, theirs, ours; a dash for what there is not."""
        return [
            (
                each.metric,
                each.system,
                each.here or "-",
                each.theirs,
                "-" if ours is None else in_unit(ours, each.unit),
            )
            for each, ours in zip(self.paper.reported, self.ours, strict=True)
        ]

    @property
    def missing(self) -> tuple[str, ...]:
        """Figures that were to be there and are not."""
        named = zip(self.paper.reported, self.ours, strict=True)
        return tuple(
            each.figure if each.over is None else f"{each.figure} / {each.over}"
            for each, ours in named
            if ours is None and each.figure is not None
        )

    def as_json(self) -> dict[str, object]:
        """What stands in the JSON of a result."""
        reported = [
            {**dataclasses.asdict(each), "ours": ours}
            for each, ours in zip(self.paper.reported, self.ours, strict=True)
        ]
        return {**dataclasses.asdict(self.paper), "reported": reported}


def parse_paper(table: RecipeTable) -> Paper | None:
    """The table [paper] of a recipe of whatever kind; None where there is none.

    Raises:
        OptionError: it has an unknown key, or a wrong value.
    """
    own = table.optional_table(PAPER)
    if own is None:
        return None
    paper = Paper(
        title=own.text("title"),
        where=own.text("where"),
        setting=own.text("setting"),
        differences=own.texts("differences"),
        reported=tuple(_parse_reported(each) for each in own.tables("reported")),
    )
    if not paper.reported:
        raise own.wrong("reported", "at least one table, written [[paper.reported]]", None)
    own.close()
    return paper


def _parse_reported(table: RecipeTable) -> Reported:
    reported = Reported(
        metric=table.text("metric"),
        system=table.text("system"),
        here=table.optional_text("here"),
        value=table.optional_positive("value"),
        up_to=table.optional_positive("up_to"),
        unit=table.optional_text("unit") or "",
        figure=table.optional_text("figure"),
        over=table.optional_text("over"),
        less=table.flag("less"),
    )
    if reported.value is None:
        table.refuse("up_to", "without 'value'")
        if reported.figure is None:
            raise table.wrong("value", "given, or 'figure', or both", None)
    if reported.figure is None:
        table.refuse("over", "without 'figure'")
    if reported.over is None:
        table.refuse("less", "without 'over'")
    if reported.value is not None and reported.up_to is not None and reported.up_to <= reported.value:
        raise table.wrong("up_to", "above 'value'", reported.up_to)
    table.close()
    return reported


def compare_with_paper(paper: Paper, results: Sequence[Mapping[str, object]]) -> PaperComparison:
    """Ours beside theirs.

    Args:
        results: what `--json` writes, of at least one run; of several the median counts.
    """
    return PaperComparison(paper, tuple(_median(each, results) for each in paper.reported))


def _median(reported: Reported, results: Sequence[Mapping[str, object]]) -> float | None:
    found = [reported.of({k: v for k, v in result.items() if k != PAPER}) for result in results]
    values = [value for value in found if value is not None]
    return statistics.median(values) if len(values) == len(found) else None


def in_unit(value: float, unit: str) -> str:
    """A figure of the paper or of ours; a share in percent where the unit is that."""
    if unit == "%":
        return f"{100 * value:.3g}%"
    if unit == "x":
        return f"{value:,.2f}x"
    digits = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{digits} {unit}".strip()
