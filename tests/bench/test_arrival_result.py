"""From arrivals to winners, a verdict, and what is printed."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO

import pytest
from rich.console import Console

from caraserve_cli.bench.arrival_recipe import Cell, GridKeys
from caraserve_cli.bench.arrival_result import ArrivalResult, CellResult, LinkResult, judge_cell
from caraserve_cli.bench.arrival_runner import ArrivalRun, mean_gap_ms
from caraserve_cli.bench.arrival_terminal import cell_summary, render_arrivals
from caraserve_cli.bench.comparison import Verdict
from tests.bench.test_throughput_result import FACTS, step

CELL = Cell(16, 64)


def arrivals(*ttfts_ms: float, how: str = "stream") -> list[ArrivalRun]:
    return [ArrivalRun(ttft_ms=ttft_ms, others_tpot_ms=5.0, cold_start=how) for ttft_ms in ttfts_ms]


def judge(
    auto: Sequence[float], stream: Sequence[float], assist: Sequence[float], within: float | None = 1.05
) -> CellResult:
    runs = {
        "cached": arrivals(*[1.0] * len(auto), how="resident"),
        "auto": arrivals(*auto),
        "stream": arrivals(*stream),
        "cpu-assist": arrivals(*assist, how="cpu-assist"),
    }
    return judge_cell(CELL, runs, within)


def test_the_winner_is_neither_the_one_that_chooses_nor_the_ideal() -> None:
    result = judge([9.0, 9.0], [20.0, 20.0], [10.0, 12.0])
    assert result.winner == "cpu-assist"
    assert result.auto_ratio == pytest.approx(9 / 11)
    assert result.auto_more_ms is not None
    assert result.auto_more_ms.mean == pytest.approx(-2.0)
    assert result.strategies["cpu-assist"].ttft_ms.mean == 11.0
    assert result.strategies["cpu-assist"].cold_starts == {"cpu-assist": 2}


def test_one_may_be_bought_with_the_other() -> None:
    def of(ttft_ms: float, tpot_ms: float) -> list[ArrivalRun]:
        return [ArrivalRun(ttft_ms=ttft_ms, others_tpot_ms=tpot_ms, cold_start="stream")]

    runs = {"cached": of(1, 1), "auto": of(40, 6), "stream": of(20, 20), "on-demand": of(60, 5)}
    result = judge_cell(CELL, runs, None)
    assert (result.winner, result.auto_ratio) == ("stream", 2.0)
    assert result.auto_ratio_of_both == pytest.approx(240 / 300)
    assert result.as_json()["auto_ratio_of_both"] == result.auto_ratio_of_both


@pytest.mark.parametrize(
    ("auto", "verdict"),
    [
        ([10.5] * 5, Verdict.MET),  # within 5%
        ([10.6] * 5, Verdict.MISSED),  # without doubt
        ([10.0, 10.0, 10.0, 10.0, 14.0], Verdict.MET),  # 8% more, and as well none
        ([10.6] * 4, Verdict.MISSED),  # too few for an interval
        ([9.0] * 5, Verdict.MET),
    ],
)
def test_auto_is_near_the_best_or_not_told_from_it(auto: list[float], verdict: Verdict) -> None:
    best, other = [10.0] * len(auto), [30.0] * len(auto)
    assert judge(auto, best, other).verdict is verdict


def test_without_a_requirement_nothing_is_missed() -> None:
    assert judge([99.0], [1.0], [2.0], within=None).verdict is Verdict.MET


def test_without_others_there_is_nothing_to_tell() -> None:
    result = judge_cell(CELL, {"auto": arrivals(1.0)}, 1.05)
    assert (result.winner, result.auto_ratio, result.verdict) == (None, None, Verdict.CANNOT_TELL)


def test_a_gap_is_the_time_for_each_step_that_gave_the_others_a_token() -> None:
    """One step before, two beside and a third that gave them nothing, one after."""
    steps = [
        step(0, 4),
        step(4, 10),
        step(10, 14, prefill=5, decode=0),
        step(14, 20, prefill=5),
        step(20, 30),
    ]
    assert mean_gap_ms(steps, 5.0, 20.0) == (6 + 4 + 6) / 2


def test_json_holds_every_cell() -> None:
    link = LinkResult(name="slow", link_gbps=3.0, cells=(judge([10.0], [10.0], [12.0]),))
    grid = GridKeys(num_decoding=8, decode_tokens=512, num_cold=16, arrival_tokens=2)
    values = ArrivalResult(facts=FACTS, grid=grid, links=(link,)).as_json()
    (case,) = values["cases"]  # type: ignore[misc]
    assert (values["kind"], values["num_decoding"], case["is_link_emulated"]) == ("arrivals", 8, True)
    (cell,) = case["cells"]
    assert (cell["prompt_tokens"], cell["lora_rank"], cell["winner"], cell["verdict"]) == (
        16,
        64,
        "stream",
        "met",
    )


def test_as_printed() -> None:
    missed, met = judge([11.0] * 5, [10.0] * 5, [12.0] * 5), judge([9.0], [10.0], [9.5])
    links = (
        LinkResult(name="native", link_gbps=None, cells=(missed,)),
        LinkResult(name="slow", link_gbps=3.0, cells=(met,)),
    )
    grid = GridKeys(num_decoding=8, decode_tokens=512, num_cold=16, arrival_tokens=2)
    console = Console(file=StringIO(), width=200)
    console.print(render_arrivals(ArrivalResult(facts=FACTS, grid=grid, links=links)), soft_wrap=True)
    assert isinstance(console.file, StringIO)
    lines = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]
    headings = "cached auto stream cpu-assist best auto / best TTFT x TPOT auto - best, ms auto chose"
    assert lines[1] == "llama2-7b with random weights, one cold arrival at a time beside 8 decoding requests"
    assert lines[8:] == [
        "native, native link: mean TTFT of the arrival / TPOT of the others, ms",
        headings,
        "16 tokens, rank 64 1.0 / 5.00 11.0 / 5.00 10.0 / 5.00 12.0 / 5.00 stream 1.10x 1.10x 1.00 to 1.00 5 "
        "stream missed",
        "",
        "slow, 3 GB/s emulated: mean TTFT of the arrival / TPOT of the others, ms",
        headings,
        "16 tokens, rank 64 1.0 / 5.00 9.0 / 5.00 10.0 / 5.00 9.5 / 5.00 cpu-assist 0.95x 0.95x -0.50 1 "
        "stream met",
        "",
        "Missed: in 'native', 16 tokens, rank 64 'auto' takes 1.10x the mean TTFT of 'stream'; the recipe "
        "requires at most 1.05x.",
    ]
    assert cell_summary(met) == "mean TTFT, ms: cached 1.0, auto 9.0, stream 10.0, cpu-assist 9.5"
