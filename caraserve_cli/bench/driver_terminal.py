"""The result of a benchmark of a driver as text for a terminal. Knows no measuring and no files."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from caraserve_cli.bench.comparison import Verdict
from caraserve_cli.bench.driver_recipe import DriverRecipe
from caraserve_cli.bench.driver_result import DriverResult
from caraserve_cli.bench.engine_terminal import all_met, cannot_tell, extremes, missed, verdict_text
from caraserve_cli.bench.result_facts import MeasuredFacts
from caraserve_cli.bench.terminal import plain_table


def render_driver(result: DriverResult) -> RenderableType:
    """The circumstances, a table of the cases, and what keeps them from passing."""
    return Group(_circumstances(result.recipe, result.facts), "", _table(result), "", *_verdict_lines(result))


def driver_summary(requests_per_s: float) -> str:
    """One run in a few words."""
    return f"{requests_per_s:,.0f} requests/s"


def _circumstances(recipe: DriverRecipe, facts: MeasuredFacts) -> Text:
    return Text(
        f"{recipe.name}: {recipe.description}\n"
        f"{recipe.num_requests:,} requests a run, {recipe.num_adapters:,} adapters, {recipe.prompt_tokens} "
        f"prompt tokens\n"
        f"{recipe.num_replicas} replicas of {recipe.max_running} requests, placement {recipe.placement}\n"
        f"caraserve {facts.caraserve_version}{facts.commit_words}, {facts.versions_words}\n"
        f"load average before: {facts.load_average:.1f} on {facts.num_cores} cores"
    )


def _table(result: DriverResult) -> Table:
    table = plain_table("replicas", "requests/s", "lowest to highest", "required", "")
    for case in result.cases:
        speed = case.requests_per_s
        table.add_row(
            case.name,
            "-" if speed is None else f"{speed.median:,.0f}",
            "-" if speed is None else extremes(speed, 0),
            "-" if case.at_least is None else f"{case.at_least:,.0f}",
            verdict_text(case.verdict, is_required=case.at_least is not None),
        )
    return table


def _verdict_lines(result: DriverResult) -> Iterator[Text]:
    for case in result.cases:
        if case.verdict is Verdict.CANNOT_TELL:
            yield cannot_tell(f"{case.name}: {case.problem}")
        elif case.problem is not None:
            yield Text(f"Not measured: {case.name}: {case.problem}")
        elif case.verdict is Verdict.MISSED and case.requests_per_s is not None:
            yield missed(
                f"{case.name}: {case.requests_per_s.median:,.0f} requests/s; the recipe requires "
                f"{case.at_least:,.0f}"
            )
    if result.verdict is Verdict.MET:
        yield all_met()
