"""The result of a benchmark of steps as text for a terminal. Knows no measuring and no files."""

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
)
from caraserve_cli.bench.step_recipe import Measure
from caraserve_cli.bench.step_result import LoraPart, StepCaseResult, StepResult, StepTimes
from caraserve_cli.bench.terminal import plain_table


def render_steps(result: StepResult) -> RenderableType:
    """The circumstances, a table each of decoding steps, what adapters add to them, and prefill steps, the
    verdict's lines."""
    tables = (_decode_table(result.cases), _lora_table(result.cases), _prefill_table(result.cases))
    parts: list[RenderableType] = [circumstances(result.facts, _contexts(result.cases))]
    for table in tables:
        if table.row_count:
            parts += ["", table]
    parts += peer_table("ms a step", _peer_rows(result.cases))
    return Group(*parts, "", *_verdict_lines(result))


def _contexts(cases: Sequence[StepCaseResult]) -> str:
    contexts = [
        each.times.context_tokens for each in cases if each.times and each.case.measure is Measure.DECODE
    ]
    if not contexts:
        return "single steps"
    least, most = min(contexts), max(contexts)
    return f"single steps, decoding with contexts of {least:.0f} to {most:.0f} tokens on average"


def _decode_table(cases: Sequence[StepCaseResult]) -> Table:
    table = plain_table("decode step", "ms", "low to high", "floor", "ratio", "at most", "")
    for each in cases:
        if each.case.measure is Measure.DECODE:
            at_most = _limit(each.case.at_most, "g", "x")
            verdict = verdict_text(each.step_verdict, is_required=any(each.step_limits()))
            cells = _decode_cells(each.times) if each.times else ["-"] * 4
            table.add_row(each.case.name, *cells, at_most, verdict)
    return table


def _decode_cells(times: StepTimes) -> list[str]:
    return [
        f"{times.step_ms.median:.2f}",
        extremes(times.step_ms, 2),
        f"{times.floor_ms:.2f}",
        f"{times.times_floor:.2f}x",
    ]


def _lora_table(cases: Sequence[StepCaseResult]) -> Table:
    table = plain_table("added time", "ms", "low to high", "floor", "ratio", "share", "at most", "")
    for each in cases:
        if each.case.without is not None:
            lora = each.times and each.times.lora
            cells = _lora_cells(lora) if lora else ["-"] * 5
            at_most = _limit(each.case.lora_at_most, "g", "x")
            verdict = verdict_text(each.lora_verdict, is_required=any(each.lora_limits()))
            if each.case.lora_share_at_most is not None:
                at_most += f" {each.case.lora_share_at_most:.0%}"
            table.add_row(each.case.name, *cells, at_most, verdict)
    return table


def _lora_cells(lora: LoraPart) -> list[str]:
    return [
        f"{lora.part_ms.median:.3f}",
        extremes(lora.part_ms, 3),
        f"{lora.floor_ms:.3f}",
        f"{lora.times_floor:.2f}x",
        f"{lora.share.median:.1%}",
    ]


def _prefill_table(cases: Sequence[StepCaseResult]) -> Table:
    table = plain_table("prefill step", "ms", "low to high", "TFLOP/s", "of rate", "at least", "")
    for each in cases:
        if each.case.measure is Measure.PREFILL:
            at_least = _limit(each.case.rate_at_least, ".0%", "")
            verdict = verdict_text(each.step_verdict, is_required=any(each.step_limits()))
            cells = _prefill_cells(each.times) if each.times else ["-"] * 4
            table.add_row(each.case.name, *cells, at_least, verdict)
    return table


def _prefill_cells(times: StepTimes) -> list[str]:
    return [
        f"{times.step_ms.median:.1f}",
        extremes(times.step_ms, 1),
        f"{times.flops_per_s / 1e12:.3g}",
        f"{times.of_product_rate:.1%}",
    ]


def _peer_rows(cases: Sequence[StepCaseResult]) -> Iterator[PeerRow]:
    for each in cases:
        peft = each.peers.peft
        if each.times and peft and (run := peft.run):
            ratio = run.step_ms / each.times.step_ms.median
            yield PeerRow(each.case.name, peft_label(each.case), f"{run.step_ms:,.1f}", ratio, run.basis)


def _limit(required: float | None, form: str, unit: str) -> str:
    return "-" if required is None else f"{required:{form}}{unit}"


def _verdict_lines(result: StepResult) -> Iterator[Text]:
    """What keeps the benchmark from passing, one line each; one line if nothing does."""
    for each in result.cases:
        name = each.case.name
        for undone in each.undone:
            yield cannot_tell(f"in '{name}' {undone}")
        for doubt in (*each.step_doubts(), *each.lora_doubts()):
            yield cannot_tell(f"in '{name}' {doubt}")
        yield from peer_problems(each.case, each.peers)
        if each.verdict is Verdict.MISSED:
            for limit in (*each.step_limits(), *each.lora_limits()):
                if not limit.is_met:
                    yield missed(f"in '{name}' {limit.sentence}")
    if result.verdict is Verdict.MET:
        yield all_met()
