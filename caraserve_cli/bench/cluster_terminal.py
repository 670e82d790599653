"""The result of a simulated cluster as text for a terminal. Knows no simulating and no files."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from caraserve_cli.bench.cluster_recipe import LessTime
from caraserve_cli.bench.cluster_result import (
    HELD_ATTAINMENT,
    ClusterPoint,
    ClusterResult,
    JudgedCluster,
    less_time,
)
from caraserve_cli.bench.comparison import Verdict
from caraserve_cli.bench.engine_terminal import all_met, cannot_tell, missed, verdict_text
from caraserve_cli.bench.terminal import plain_table
from caraserve_cli.placement.catalogue import DEFAULT_PLACEMENT
from caraserve_cli.placement.dlora import DloraPlacement


def render_cluster(result: ClusterResult) -> RenderableType:
    """The circumstances, for each kernel the policies at the SLO's load and the sweep, what is required."""
    parts: list[RenderableType] = [_circumstances(result)]
    for lora_kernel in result.lora_kernels:
        parts += ["", _policies_line(result, lora_kernel), _policies_table(result, lora_kernel)]
        parts += ["", Text(f"{lora_kernel}: attainment by requests/s"), _sweep_table(result, lora_kernel)]
    if result.judged:
        parts += ["", _required_table(result)]
    return Group(*parts, "", *_verdict_lines(result))


def point_summary(point: ClusterPoint) -> str:
    """One simulation in a line."""
    return (
        f"{point.time_per_token_ms:.2f} ms a token, {point.attainment:.2%} within the SLO, "
        f"{point.cpu_s:.1f} s of a core"
    )


def _circumstances(result: ClusterResult) -> Text:
    facts, base = result.facts, result.without_lora
    origin = "measured profile" if facts.is_measured else "constants of the recipe"
    counted = facts.num_requests - 2 * facts.num_settling
    moves = ""
    if DloraPlacement.name in result.policies:
        moves = (
            f"\n{DloraPlacement.name} here also takes back requests that wait at a replica; "
            "`caraserve run` moves only what it has not sent"
        )
    return Text(
        f"{facts.recipe}: {facts.description}\n"
        f"Simulated: {facts.num_replicas} x {facts.machine} ({origin}), {facts.num_adapters:,} adapters, "
        f"cold starts {facts.cold_start}, caraserve {facts.caraserve_version}{facts.commit_words}\n"
        f"{facts.num_requests:,} requests a simulation, {counted:,} of them counted, seed {facts.seed}\n"
        f"time per token (latency / output tokens) without LoRA: {base.time_per_token_ms:.2f} ms at "
        f"{base.rate_per_s:,.0f} requests/s; SLO {facts.slo_factor:g}x = {facts.slo_ms:.2f} ms, which "
        f"{base.attainment:.1%} keep without LoRA{moves}"
    )


def _policies_line(result: ClusterResult, lora_kernel: str) -> Text:
    rate = result.without_lora.rate_per_s
    return Text(
        f"{lora_kernel} at {rate:,.0f} requests/s; ms, means but for p99\n"
        f"less: by what share the time per token of {DEFAULT_PLACEMENT} is less; "
        f"99% to: requests/s up to which 99% keep the SLO"
    )


def _policies_table(result: ClusterResult, lora_kernel: str) -> Table:
    rate = result.without_lora.rate_per_s
    ours = result.at(lora_kernel, DEFAULT_PLACEMENT, rate)
    table = plain_table("", "a token", "p99", "SLO", "TTFT", "TPOT", "cold", "less", "99% to")
    for policy in result.policies:
        point = result.at(lora_kernel, policy, rate)
        if point is None:
            continue
        table.add_row(
            policy,
            f"{point.time_per_token_ms:.2f}",
            f"{point.p99_time_per_token_ms:.1f}",
            f"{point.attainment:.1%}",
            f"{point.ttft_ms:,.0f}",
            "-" if point.tpot_ms is None else f"{point.tpot_ms:.2f}",
            f"{_cold_share(point):.0%}",
            "-" if ours is None or policy == DEFAULT_PLACEMENT else f"{less_time(ours, point):.0%}",
            _held(result, lora_kernel, policy),
        )
    return table


def _held(result: ClusterResult, lora_kernel: str, policy: str) -> str:
    """The load to which a policy holds `HELD_ATTAINMENT`."""
    points = result.of_policy(lora_kernel, policy)
    held = result.held_rate_per_s(lora_kernel, policy)
    if held is None:
        return f"< {points[0].rate_per_s:,.0f}"
    return f"{held:,.0f}" if points[-1].attainment < HELD_ATTAINMENT else f">= {held:,.0f}"


def _cold_share(point: ClusterPoint) -> float:
    warm = point.cold_starts.get("resident", 0) + point.cold_starts.get("none", 0)
    return 1 - warm / point.num_counted


def _sweep_table(result: ClusterResult, lora_kernel: str) -> Table:
    rates = sorted({p.rate_per_s for p in result.points if p.lora_kernel == lora_kernel})
    table = plain_table("", *(f"{rate:,.0f}" for rate in rates))
    for policy in result.policies:
        points = (result.at(lora_kernel, policy, rate) for rate in rates)
        table.add_row(policy, *("" if point is None else f"{point.attainment:.1%}" for point in points))
    return table


def _required_table(result: ClusterResult) -> Table:
    table = plain_table("required", "bound", "found", "requests/s", "")
    for judged in result.judged:
        table.add_row(
            _subject(judged),
            _bound(judged),
            "-" if judged.found is None else f"{judged.found:.1%}",
            "-" if judged.rate_per_s is None else f"{judged.rate_per_s:,.0f}",
            verdict_text(judged.verdict, is_required=True),
        )
    return table


def _subject(judged: JudgedCluster) -> str:
    required = judged.requirement
    if isinstance(required, LessTime):
        return f"{required.lora_kernel}, {required.policy} / {required.over}: less"
    return f"{required.lora_kernel}, best of others where {required.policy} has {required.holds:.0%}"


def _bound(judged: JudgedCluster) -> str:
    required = judged.requirement
    if isinstance(required, LessTime):
        return f">= {required.less_by_at_least:.0%}"
    return f"<= {required.others_at_most:.0%}"


def _verdict_lines(result: ClusterResult) -> Iterator[Text]:
    """What keeps the benchmark from passing, one line each; one line if nothing does."""
    for judged in result.judged:
        found = "is at no load" if judged.found is None else f"is {judged.found:.1%}"
        if judged.verdict is Verdict.CANNOT_TELL:
            yield cannot_tell(f"{_subject(judged)} was not simulated")
        elif judged.verdict is Verdict.MISSED:
            yield missed(f"{_subject(judged)} {found}; the recipe requires {_bound(judged)}")
    if result.verdict is Verdict.MET:
        yield all_met()
