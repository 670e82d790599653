"""What every benchmark of the engine alone says in a terminal. Knows no measuring and no files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from rich.console import RenderableType
from rich.text import Text

from caraserve_cli.bench.comparison import Spread, Verdict
from caraserve_cli.bench.engine_case import EngineCase
from caraserve_cli.bench.engine_result import EngineFacts, Peers
from caraserve_cli.bench.terminal import plain_table

_VERDICTS = {
    Verdict.MET: ("met", "green"),
    Verdict.MISSED: ("missed", "red"),
    Verdict.CANNOT_TELL: ("cannot tell", "yellow"),
}


def circumstances(facts: EngineFacts, work: str) -> Text:
    """Where and of what was measured; `work` says of what length the requests are."""
    return Text(
        f"{facts.recipe}: {facts.description}\n"
        f"{facts.base} with {facts.weights} weights, {work}\n"
        f"{facts.repeats} interleaved repeats, warm-ups: {facts.warmups}\n"
        f"{facts.device}, {facts.dtype}, {facts.versions_words}{facts.commit_words}\n"
        f"load average before: {facts.load_average:.1f} on {facts.num_cores} cores\n"
        f"copy {facts.copy_bytes_per_s / 1e9:,.0f} GB/s, matrix product "
        f"{facts.product_flops_per_s / 1e12:,.3g} TFLOP/s\n"
        f"first replica ready after {facts.startup_s:.1f} s, {facts.num_adapters} adapters made in "
        f"{facts.adapters_s:.1f} s"
    )


def verdict_text(verdict: Verdict, *, is_required: bool) -> Text:
    """The last cell of a row; empty where nothing is required and nothing went wrong."""
    if verdict is Verdict.MET and not is_required:
        return Text("")
    words, style = _VERDICTS[verdict]
    return Text(words, style=style)


def extremes(spread: Spread, decimals: int) -> str:
    """The lowest and the highest value."""
    return f"{spread.lowest:,.{decimals}f} to {spread.highest:,.{decimals}f}"


def missed(text: str) -> Text:
    """A line on a requirement."""
    return Text(f"Missed: {text}.", style="red")


def cannot_tell(text: str) -> Text:
    """A line on work that was not done."""
    return Text(f"Cannot tell: {text}.", style="yellow")


class PeerRow(NamedTuple):
    """What a peer gave for a case, how many times as fast CaraServe is, and what the peer's is based on."""

    case: str
    peer: str
    gave: str
    ratio: float
    basis: str


def peft_label(case: EngineCase) -> str:
    """The peer's name in a table: without adapters there is no PEFT in it."""
    return "PEFT" if case.num_adapters else "transformers"


def peer_table(unit: str, rows: Iterable[PeerRow]) -> list[RenderableType]:
    """One table of all peers, `unit` being that of what they gave; nothing without rows."""
    table = plain_table("speed, ours / theirs", "peer", unit, "ratio", "")
    basis = table.columns[-1]
    # A long version may take a second line, and not the numbers' room.
    basis.justify, basis.no_wrap, basis.overflow = "left", False, "fold"
    for row in rows:
        table.add_row(row.case, row.peer, row.gave, f"{row.ratio:,.2f}x", row.basis)
    return ["", table] if table.row_count else []


def peer_problems(case: EngineCase, peers: Peers) -> Iterator[Text]:
    """A line for each peer that was to be measured in a case and was not; that vLLM is missing is no news of
    a case, see `vllm_missing`."""
    if peers.peft and peers.peft.problem:
        yield Text(f"Not measured: {case.peft_name} in '{case.name}': {peers.peft.problem}.", style="yellow")
    if peers.vllm and peers.vllm.problem and not peers.vllm.is_missing:
        yield Text(f"Not measured: vLLM in '{case.name}': {peers.vllm.problem}.", style="yellow")


def vllm_missing(peers: Iterable[Peers]) -> Iterator[Text]:
    """One line, in whichever number of cases it is missing."""
    if any(each.vllm and each.vllm.is_missing for each in peers):
        yield Text("vLLM is not installed, so that it was not measured.", style="dim")


def all_met() -> Text:
    """The only line where nothing else is to be said."""
    return Text("All work was done and every requirement is met.", style="green")
