"""The result of a throughput benchmark as text for a terminal. Knows no measuring and no files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from caraserve_cli.bench.comparison import Verdict
from caraserve_cli.bench.engine_terminal import (
    PeerRow,
    all_met,
    cannot_tell,
    circumstances,
    extremes,
    missed,
    peer_problems,
    peer_table,
    peft_label,
    verdict_text,
    vllm_missing,
)
from caraserve_cli.bench.terminal import plain_table
from caraserve_cli.bench.throughput_result import CaseResult, ThroughputResult


def render_throughput(result: ThroughputResult) -> RenderableType:
    """The circumstances, a table of what is required, a table of what it is made of, the verdict's lines."""
    lengths = f"{result.prompt_tokens} prompt and {result.output_tokens} output tokens a request"
    return Group(
        circumstances(result.facts, lengths),
        "",
        _speed_table(result.cases),
        "",
        _work_table(result.cases),
        *peer_table("tokens/s", _peer_rows(result.cases)),
        "",
        *_verdict_lines(result),
    )


def _speed_table(cases: Sequence[CaseResult]) -> Table:
    table = plain_table("output tokens/s", "median", "lowest to highest", "required", "")
    for each in cases:
        speed, at_least = each.tokens_per_s, each.case.at_least
        table.add_row(
            each.case.name,
            f"{speed.median:,.0f}",
            extremes(speed, 0),
            "-" if at_least is None else f"{at_least:,.0f}",
            verdict_text(each.verdict, is_required=at_least is not None),
        )
    return table


def _work_table(cases: Sequence[CaseResult]) -> Table:
    table = plain_table("", "floor", "of floor", "decode step", "loads", "running")
    for each in cases:
        step_ms = each.decode_step_ms
        table.add_row(
            each.case.name,
            f"{each.floor_tokens_per_s:,.0f}",
            f"{each.of_floor:.0%}",
            "-" if step_ms is None else f"{step_ms.median:.2f} ms",
            f"{max(each.num_adapter_loads):,}",
            f"{max(each.peak_running):,}",
        )
    return table


def _peer_rows(cases: Sequence[CaseResult]) -> Iterator[PeerRow]:
    for each in cases:
        for peer, measured in ((peft_label(each.case), each.peers.peft), ("vLLM", each.peers.vllm)):
            if measured and (run := measured.run):
                ratio = each.tokens_per_s.median / run.tokens_per_s
                yield PeerRow(each.case.name, peer, f"{run.tokens_per_s:,.0f}", ratio, run.basis)


def _verdict_lines(result: ThroughputResult) -> Iterator[Text]:
    """What keeps the benchmark from passing, one line each; one line if nothing does."""
    for each in result.cases:
        name, at_least = each.case.name, each.case.at_least
        for undone in each.undone:
            yield cannot_tell(f"in '{name}' {undone}")
        yield from peer_problems(each.case, each.peers)
        if each.verdict is Verdict.MISSED:
            yield missed(
                f"'{name}' gives {each.tokens_per_s.median:,.0f} output tokens a second; the recipe "
                f"requires {at_least:,.0f}"
            )
    yield from vllm_missing(each.peers for each in result.cases)
    if result.verdict is Verdict.MET:
        yield all_met()
