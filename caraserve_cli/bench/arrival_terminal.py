"""The result of a break-even grid as text for a terminal. Knows no measuring and no files."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from caraserve_cli.bench.arrival_result import ArrivalResult, CellResult, LinkResult
from caraserve_cli.bench.cold_starts import AUTO, link_words
from caraserve_cli.bench.comparison import Verdict
from caraserve_cli.bench.engine_terminal import all_met, cannot_tell, circumstances, missed, verdict_text
from caraserve_cli.bench.terminal import plain_table


def render_arrivals(result: ArrivalResult) -> RenderableType:
    """The circumstances, a table of cells for each link, the verdict's lines."""
    work = f"one cold arrival at a time beside {result.grid.num_decoding} decoding requests"
    parts: list[RenderableType] = [circumstances(result.facts, work)]
    for link in result.links:
        parts += ["", _link_line(link), _cells_table(link)]
    return Group(*parts, "", *_verdict_lines(result))


def cell_summary(cell: CellResult) -> str:
    """The strategies' mean TTFT in a few words."""
    ttfts = (f"{strategy} {each.ttft_ms.mean:.1f}" for strategy, each in cell.strategies.items())
    return f"mean TTFT, ms: {', '.join(ttfts)}"


def _link_line(link: LinkResult) -> Text:
    return Text(
        f"{link.name}, {link_words(link.link_gbps)}: mean TTFT of the arrival / TPOT of the others, ms"
    )


def _cells_table(link: LinkResult) -> Table:
    """A row for each cell; the cells have the same strategies."""
    strategies = link.cells[0].strategies
    table = plain_table(
        "", *strategies, "best", "auto / best", "TTFT x TPOT", "auto - best, ms", "auto chose", ""
    )
    for cell in link.cells:
        table.add_row(
            cell.cell.name,
            *(
                f"{each.ttft_ms.mean:.1f} / {each.others_tpot_ms.mean:.2f}"
                for each in cell.strategies.values()
            ),
            cell.winner or "-",
            _times(cell.auto_ratio),
            _times(cell.auto_ratio_of_both),
            _difference(cell),
            _choices(cell),
            verdict_text(cell.verdict, is_required=cell.auto_within is not None),
        )
    return table


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}x"


def _difference(cell: CellResult) -> str:
    more = cell.auto_more_ms
    if more is None:
        return "-"
    return (
        f"{more.mean:.2f}"
        if more.interval is None
        else f"{more.interval.low:.2f} to {more.interval.high:.2f}"
    )


def _choices(cell: CellResult) -> str:
    """What `auto` came to, the most frequent first."""
    if AUTO not in cell.strategies:
        return "-"
    ordered = sorted(cell.strategies[AUTO].cold_starts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{num_arrivals} {how}" for how, num_arrivals in ordered)


def _verdict_lines(result: ArrivalResult) -> Iterator[Text]:
    """What keeps the benchmark from passing, one line each; one line if nothing does."""
    for link in result.links:
        for cell in link.cells:
            subject = f"'{link.name}', {cell.cell.name}"
            if cell.verdict is Verdict.CANNOT_TELL:
                yield cannot_tell(f"in {subject} there is nothing to compare '{AUTO}' with")
            elif cell.verdict is Verdict.MISSED:
                yield missed(
                    f"in {subject} '{AUTO}' takes {cell.auto_ratio:.2f}x the mean TTFT of '{cell.winner}'; "
                    f"the recipe requires at most {cell.auto_within:g}x"
                )
    if result.verdict is Verdict.MET:
        yield all_met()
