"""The result of a benchmark of scheduling as text for a terminal. Knows no measuring and no files."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from caraserve_cli.bench.comparison import Verdict
from caraserve_cli.bench.engine_result import EngineFacts
from caraserve_cli.bench.engine_terminal import all_met, cannot_tell, circumstances, missed
from caraserve_cli.bench.slo_result import SloCaseResult, SloResult
from caraserve_cli.bench.terminal import plain_table
from caraserve_cli.bench.virtual_machine import VirtualFacts


def render_slo(result: SloResult) -> RenderableType:
    """The circumstances, each case's table of rates, what was held, the verdict's lines."""
    parts: list[RenderableType] = [_circumstances(result.facts)]
    for each in result.cases:
        parts += ["", _case_line(each), _rates_table(each), _held_line(each)]
    return Group(*parts, "", *_verdict_lines(result))


def _circumstances(facts: EngineFacts | VirtualFacts) -> Text:
    if isinstance(facts, EngineFacts):
        return circumstances(facts, "requests that arrive in time, with bounds")
    lora = "" if facts.has_lora_model else "; it has no LoRA kernel: adapters cost nothing here"
    mixed = (
        "" if facts.has_mixed_model else "; it says nothing of prompts beside decoding requests: make it anew"
    )
    return Text(
        f"{facts.recipe}: {facts.description}\n"
        f"SIMULATED, nothing was measured: {facts.base}, {facts.dtype}, by the profile of {facts.machine} in "
        f"{facts.profile}, measured at {facts.profile_measured_at}{facts.commit_words}{lora}{mixed}"
    )


def _case_line(result: SloCaseResult) -> Text:
    case, bounds = result.case, result.bounds
    named = (("TTFT", bounds.ttft_slo_ms), ("TPOT", bounds.tpot_slo_ms), ("latency", bounds.deadline_ms))
    words = ", ".join(f"{name} {bound_ms:.4g} ms" for name, bound_ms in named if bound_ms is not None)
    base = "" if result.base_tpot_ms is None else f" (TPOT without adapters {result.base_tpot_ms:.4g} ms)"
    model = "a profile predicts steps" if result.has_step_model else "no profile: nothing predicts steps"
    return Text(
        f"{case.name}: {case.num_requests} requests a rate, {case.num_adapters} adapters of ranks "
        f"{'/'.join(map(str, case.lora_ranks))}, {case.prompt_tokens} in and {case.output_tokens} out; "
        f"bounds: {words}{base}; {model}; medians of the repeats"
    )


def _rates_table(result: SloCaseResult) -> Table:
    table = plain_table("requests/s", "policy", "SLO", "lowest", "TTFT, ms", "TPOT, ms", "tokens/s")
    for index, rate_per_s in enumerate(result.case.rates_per_s):
        for policy in result.case.scheduling:
            each = result.rates[policy][index]
            table.add_row(
                str(rate_per_s),
                policy,
                f"{each.attainment.median:.1%}",
                f"{each.attainment.lowest:.1%}",
                f"{each.mean_ttft_ms.median:,.1f}",
                "-" if each.mean_tpot_ms is None else f"{each.mean_tpot_ms.median:,.2f}",
                f"{each.output_tokens_per_s.median:,.0f}",
            )
    return table


def _held_line(result: SloCaseResult) -> Text:
    held = {policy: result.held_rate_per_s(policy) for policy in result.case.scheduling}
    words = ", ".join(
        f"{policy} {'no rate' if rate is None else f'{rate}/s'}" for policy, rate in held.items()
    )
    ratio = "" if result.ratio is None else f": {result.ratio:.2f}x"
    return Text(f"{result.case.attained:.0%} of the bounds met up to: {words}{ratio}")


def _verdict_lines(result: SloResult) -> Iterator[Text]:
    for each in result.cases:
        name, required = each.case.name, each.case.ratio_at_least
        for undone in each.undone:
            yield cannot_tell(f"in '{name}' {undone}")
        if each.undone or required is None or each.verdict is Verdict.MET:
            continue
        if each.verdict is Verdict.CANNOT_TELL:
            yield cannot_tell(f"in '{name}' the rates do not show where both policies break")
        else:
            yield missed(
                f"in '{name}' the ratio of the rates is {each.ratio:.2f}x; "
                f"the recipe requires at least {required:g}x"
            )
    if result.verdict is Verdict.MET:
        yield all_met()
