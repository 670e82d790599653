"""The result of a benchmark of the simulator as text for a terminal. Knows no measuring and no files."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from caraserve_cli.bench.cold_starts import link_words
from caraserve_cli.bench.comparison import Verdict
from caraserve_cli.bench.engine_terminal import all_met, cannot_tell, circumstances, missed
from caraserve_cli.bench.simulator_recipe import SimulatorCase
from caraserve_cli.bench.simulator_result import Apart, SimulatedRate, SimulatorCaseResult, SimulatorResult
from caraserve_cli.bench.terminal import plain_table

_WORDS = {"mean_ttft": "TTFT, ms", "mean_tpot": "TPOT, ms", "mean_latency": "latency, ms"}
_ATTAINMENT = "SLO"


def render_simulator(result: SimulatorResult) -> RenderableType:
    """The circumstances, each case's table, the verdict's lines."""
    work = f"requests that arrive in time; profile of {result.profile_measured_at}"
    parts: list[RenderableType] = [circumstances(result.facts, work)]
    for each in result.cases:
        parts += ["", _case_line(each), _rates_table(each)]
    return Group(*parts, "", *_verdict_lines(result))


def _case_line(result: SimulatorCaseResult) -> Text:
    case, bounds = result.case, result.case.bounds
    named = (("TTFT", bounds.ttft_slo_ms), ("TPOT", bounds.tpot_slo_ms), ("latency", bounds.deadline_ms))
    words = ", ".join(f"{name} {bound_ms:g} ms" for name, bound_ms in named if bound_ms is not None)
    lora = "" if result.has_lora_model else "; the profile has no LoRA kernel: adapters cost nothing there"
    return Text(
        f"{case.name}: {case.num_requests} requests a rate, {case.num_adapters} adapters of ranks "
        f"{'/'.join(map(str, case.lora_ranks))}, {case.prompt_tokens} in and {case.output_tokens} out, "
        f"{case.scheduling}, {case.cold_start}, {link_words(case.link_gbps)}; "
        f"bounds: {words or 'none'}; means of all requests, medians of the repeats{lora}. "
        f"{_allowed(case)}nothing is required of what the warm-ups correct"
    )


def _allowed(case: SimulatorCase) -> str:
    if case.within is None or case.attainment_within is None:
        return "Nothing is required of what is simulated; "
    return (
        f"Allowed are {1 / case.within:.2f} to {case.within:.2f} times, and for the SLO "
        f"{100 * case.attainment_within:g} points; "
    )


def _rates_table(result: SimulatorCaseResult) -> Table:
    table = plain_table("requests/s", "", "measured", "simulated", "ratio", "corrected", "")
    for rate in result.rates:
        for name, each in rate.measures.items():
            corrected = rate.corrected_ratios.get(name)
            table.add_row(
                str(rate.rate_per_s),
                _WORDS[name],
                f"{each.measured.median:,.2f}",
                f"{each.simulated.median:,.2f}",
                f"{each.ratio:.3f}",
                "-" if corrected is None else f"{corrected:.3f}",
                "" if each.is_within else Text("missed", style="red"),
            )
        if (share := rate.attainment) is not None:
            table.add_row(
                str(rate.rate_per_s),
                _ATTAINMENT,
                f"{share.measured.median:.1%}",
                f"{share.simulated.median:.1%}",
                "-" if share.ratio == float("inf") else f"{share.ratio:.3f}",
                "-",
                "" if share.is_within else Text("missed", style="red"),
            )
    return table


def _misses(rate: SimulatedRate) -> Iterator[tuple[str, Apart]]:
    yield from ((_WORDS[name], each) for name, each in rate.measures.items() if not each.is_within)
    if rate.attainment is not None and not rate.attainment.is_within:
        yield _ATTAINMENT, rate.attainment


def _verdict_lines(result: SimulatorResult) -> Iterator[Text]:
    """What keeps the benchmark from passing, one line each; one line if nothing does."""
    for each in result.cases:
        for undone in each.undone:
            yield cannot_tell(f"in '{each.case.name}' {undone}")
        for rate in each.rates if not each.undone else ():
            for words, apart in _misses(rate):
                yield missed(
                    f"in '{each.case.name}' at {rate.rate_per_s}/s {words}: simulated "
                    f"{apart.simulated.median:.4g}, measured {apart.measured.median:.4g}"
                )
    if result.verdict is Verdict.MET:
        yield all_met()
