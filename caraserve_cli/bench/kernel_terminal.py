"""The result of a benchmark of operators as text for a terminal. Knows no measuring and no files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from caraserve_cli.bench.comparison import Verdict
from caraserve_cli.bench.engine_terminal import all_met, cannot_tell, extremes, missed, verdict_text
from caraserve_cli.bench.kernel_result import (
    AS_OURS,
    CaseResult,
    FitResult,
    FormsResult,
    KernelFacts,
    KernelResult,
    LoadResult,
    OperatorResult,
    verdict_on,
)
from caraserve_cli.bench.terminal import plain_table


def render_kernels(result: KernelResult) -> RenderableType:
    """The circumstances, tables of each section, the verdict's lines."""
    parts: list[RenderableType] = [_circumstances(result.facts)]
    for title, operators in (
        ("products of a layer, µs", result.products),
        ("attention of a layer, µs", result.attention),
        ("LoRA of a step, µs", result.lora),
    ):
        if operators:
            parts += ["", _time_table(title, operators), "", _floor_table(operators)]
            parts += [*_peer_bases(operators), *_peer_problems(operators)]
    for table in (_forms_table(result.forms), _fit_table(result.fit), _loads_table(result.loads)):
        if table.row_count:
            parts += ["", table]
    return Group(*parts, "", *_verdict_lines(result))


def summary(case: CaseResult) -> str:
    """What a case gave, in a few words."""
    if isinstance(case, OperatorResult):
        return f"{case.time_us.median:,.1f} µs, {case.times_floor:.2f}x its floor"
    if isinstance(case, FormsResult):
        return f"bgmv takes {case.bgmv_over_mbgmv.median:.2f}x the time of mbgmv"
    if isinstance(case, FitResult):
        return f"R² {case.mbgmv.r2:.3f} of mbgmv, {case.bgmv.r2:.3f} of bgmv"
    assert isinstance(case, LoadResult)
    return f"{case.adapter_us.median:,.0f} µs, {case.adapter_ratio.median:.2f}x a contiguous copy"


def _circumstances(facts: KernelFacts) -> Text:
    modules = f", adapters on {', '.join(facts.modules)}" if facts.modules else ""
    return Text(
        f"{facts.recipe}: {facts.description}\n"
        f"shape of {facts.base}, random data{modules}, up to {facts.most_repeats} repeats\n"
        f"{facts.device}, {facts.dtype}, {facts.versions_words}{facts.commit_words}\n"
        f"load average before: {facts.load_average:.1f} on {facts.num_cores} cores\n"
        f"copy {facts.copy_bytes_per_s / 1e9:,.0f} GB/s, matrix product "
        f"{facts.product_flops_per_s / 1e12:,.3g} TFLOP/s; all measured in {facts.seconds:.0f} s"
    )


def _time_table(title: str, results: Sequence[OperatorResult]) -> Table:
    table = plain_table(title, "median", "lowest to highest", "at most", "")
    for each in results:
        table.add_row(
            each.name,
            f"{each.time_us.median:,.1f}",
            extremes(each.time_us, 1),
            _required(each),
            _verdict(each),
        )
    return table


def _floor_table(results: Sequence[OperatorResult]) -> Table:
    """Beside what the device could do, and what others do."""
    peers = list(dict.fromkeys(peer.name for each in results for peer in each.peers))
    table = plain_table("", "floor", "ratio", *peers)
    for each in results:
        time_of = {peer.name: peer.time_us for peer in each.peers}
        peer_times = [time_of.get(name) for name in peers]
        table.add_row(
            each.name,
            f"{each.floor_us:,.1f}",
            f"{each.times_floor:.2f}x",
            *("-" if time is None else f"{time.median:,.1f}" for time in peer_times),
        )
    return table


def _required(result: OperatorResult) -> str:
    required = result.required
    us = [] if required.at_most_us is None else [f"{required.at_most_us:g}"]
    return ", ".join(us if required.at_most is None else [*us, f"{required.at_most:g}x"]) or "-"


def _peer_bases(results: Sequence[OperatorResult]) -> Iterator[Text]:
    """A line for each peer that was timed in another way than ours."""
    bases = {
        peer.name: f"{peer.name}: {peer.basis}, {len(peer.time_us.values)} repeats"
        for each in results
        for peer in each.peers
        if peer.time_us is not None and peer.basis != AS_OURS
    }
    for line in bases.values():
        yield Text(line)


def _peer_problems(results: Sequence[OperatorResult]) -> Iterator[Text]:
    for each in results:
        for peer in each.peers:
            if peer.problem is not None:
                yield Text(f"No time of {peer.name} in '{each.name}': {peer.problem}", style="yellow")


def _forms_table(results: Sequence[FormsResult]) -> Table:
    table = plain_table("LoRA of a step, µs", "mbgmv", "bgmv", "ratio", "required", "")
    for each in results:
        case = each.case
        required = [] if case.bgmv_at_least is None else [f"bgmv {case.bgmv_at_least:g}x or more"]
        if case.mbgmv_at_most is not None:
            required.append(f"mbgmv {case.mbgmv_at_most:g}x or less")
        table.add_row(
            each.name,
            f"{each.mbgmv_us.median:,.1f}",
            f"{each.bgmv_us.median:,.1f}",
            f"{each.bgmv_over_mbgmv.median:.2f}x",
            ", ".join(required) or "-",
            _verdict(each),
        )
    return table


def _fit_table(results: Sequence[FitResult]) -> Table:
    repeats = max((each.repeats for each in results), default=0)
    table = plain_table(f"LoRA of a step, µs, {repeats} repeats", "alpha", "beta", "R²", "at least", "")
    for each in results:
        at_least = each.case.r2_at_least
        for form, line in (("mbgmv", each.mbgmv), ("bgmv", each.bgmv)):
            table.add_row(
                f"{form}, {each.name}",
                f"{line.alpha:.4f}",
                f"{line.beta:,.1f}",
                f"{line.r2:.4f}",
                "-" if at_least is None else f"{at_least:g}",
                _verdict(each),
            )
    return table


def _loads_table(results: Sequence[LoadResult]) -> Table:
    table = plain_table("to the device, µs", "median", "contiguous", "ratio", "at most", "")
    for each in results:
        at_most = each.case.layer_at_most
        table.add_row(
            f"{each.name}, {each.adapter_bytes / 1e6:,.1f} MB",
            f"{each.adapter_us.median:,.1f}",
            f"{each.contiguous_us.median:,.1f}",
            f"{each.adapter_ratio.median:.3f}x",
            "-",
            "",
        )
        table.add_row(
            f"{each.name}, one layer",
            f"{each.layer_us.median:,.1f}",
            f"{each.contiguous_layer_us.median:,.1f}",
            f"{each.layer_ratio.median:.3f}x",
            "-" if at_most is None else f"{at_most:g}x",
            _verdict(each),
        )
    return table


def _verdict(case: CaseResult) -> Text:
    return verdict_text(verdict_on(case), is_required=any(True for _ in case.limits()))


def _verdict_lines(result: KernelResult) -> Iterator[Text]:
    """What keeps the benchmark from passing, one line each; one line if nothing does."""
    for section, cases in result.sections.items():
        for case in cases:
            if case.wrong is not None:
                yield cannot_tell(f"{section}, '{case.name}' {case.wrong}")
            elif verdict_on(case) is Verdict.MISSED:
                for limit in case.limits():
                    if not limit.is_met:
                        yield missed(f"{section}, '{case.name}': {limit.sentence}")
    if result.verdict is Verdict.MET:
        yield all_met()
