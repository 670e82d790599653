"""What a recipe says of its metrics for the regression gate, in place of what their names say.

    [[gate]]
    metric = "*: step_over_reference"   # a name, with * for anything
    direction = "lower"                 # or "higher": which is better
    tolerance = 0.05                    # by what fraction it may become worse
    [[gate]]
    metric = "base alone: *"
    ignore = true                       # is recorded and not judged

Later tables win. Knows no torch and starts nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from caraserve_cli.bench.metric import Direction, Metric
from caraserve_cli.bench.recipe_table import RecipeTable
from caraserve_cli.errors import OptionError


@dataclass(frozen=True, slots=True, kw_only=True)
class GateRule:
    """One table; None leaves what a metric's name says."""

    pattern: str
    direction: Direction | None
    tolerance: float | None
    ignore: bool

    def fits(self, metric: Metric) -> bool:
        """Whether it is about this metric."""
        # A bracket is no range here: names of cases may have some.
        return fnmatchcase(metric.name, self.pattern.replace("[", "[[]"))

    def applied_to(self, metric: Metric) -> Metric:
        """The metric as this rule has it."""
        direction = None if self.ignore else self.direction or metric.direction
        return replace(
            metric,
            direction=direction,
            tolerance=metric.tolerance if self.tolerance is None else self.tolerance,
        )


def parse_gate_rules(table: RecipeTable) -> tuple[GateRule, ...]:
    """All tables [[gate]] of a recipe of whatever kind.

    Raises:
        OptionError: one has an unknown key, or a wrong value.
    """
    return tuple(_parse_rule(each) for each in table.tables("gate"))


def _parse_rule(table: RecipeTable) -> GateRule:
    direction = table.optional_text("direction")
    if direction is not None and direction not in tuple(Direction):
        raise table.wrong("direction", "lower or higher, whichever is better", direction)
    rule = GateRule(
        pattern=table.text("metric"),
        direction=None if direction is None else Direction(direction),
        tolerance=table.optional_positive("tolerance"),
        ignore=table.flag("ignore"),
    )
    if rule.ignore:
        for key in ("direction", "tolerance"):
            table.refuse(key, "beside 'ignore'")
    table.close()
    return rule


def apply_gate_rules(metrics: Sequence[Metric], rules: Sequence[GateRule], recipe: str) -> list[Metric]:
    """The metrics as the recipe has them.

    Raises:
        OptionError: a rule fits no metric.
    """
    ruled = list(metrics)
    for rule in rules:
        if not any(rule.fits(metric) for metric in metrics):
            names = ", ".join(f"'{metric.name}'" for metric in metrics[:3])
            raise OptionError(
                f"recipe '{recipe}', [[gate]]: no metric is called '{rule.pattern}'; there are {names}, …"
            )
        ruled = [rule.applied_to(metric) if rule.fits(metric) else metric for metric in ruled]
    return ruled
