"""From times to verdicts."""

from __future__ import annotations

import io

import orjson
import pytest
from rich.console import Console

from caraserve_cli.bench.comparison import Spread, Verdict
from caraserve_cli.bench.kernel_cases import FitCase, FormsCase, LoadCase, TimeLimits
from caraserve_cli.bench.kernel_result import (
    CaseResult,
    FitPoint,
    FitResult,
    FormsResult,
    KernelFacts,
    KernelResult,
    LoadResult,
    OperatorResult,
    PeerTime,
    verdict_on,
)
from caraserve_cli.bench.kernel_terminal import render_kernels
from caraserve_cli.perf.least_squares import Line

FACTS = KernelFacts(
    recipe="mine",
    description="a benchmark",
    caraserve_version="1",
    commit=None,
    versions={"torch": "2"},
    device="a GPU",
    num_cores=2,
    load_average=0.5,
    base="llama2-7b",
    dtype="bfloat16",
    modules=("q_proj",),
    most_repeats=9,
    copy_bytes_per_s=4e12,
    product_flops_per_s=8e14,
    seconds=60.0,
)


def operator(at_most_us: float | None = None, at_most: float | None = None) -> OperatorResult:
    """One that takes 120 µs, 1.2 times its floor."""
    return OperatorResult(
        name="1 token",
        time_us=Spread.of([121.0, 120.0, 119.0]),
        floor_us=100.0,
        peers=(
            PeerTime("torch", Spread.of([150.0, 151.0, 152.0])),
            PeerTime("FlashInfer", None, "OSError: no nvcc"),
            PeerTime("PEFT", Spread.of([900.0, 901.0]), basis="called layer by layer"),
        ),
        error=1e-3,
        wrong=None,
        required=TimeLimits(at_most_us, at_most),
    )


def forms(bgmv_at_least: float | None = None, mbgmv_at_most: float | None = None) -> FormsResult:
    """mbgmv takes 100 µs, bgmv 80."""
    case = FormsCase(
        name="32 of rank 32",
        adapter_ranks=(32,) * 32,
        bgmv_at_least=bgmv_at_least,
        mbgmv_at_most=mbgmv_at_most,
    )
    return FormsResult(
        case=case,
        mbgmv_us=Spread.of([100.0]),
        bgmv_us=Spread.of([80.0]),
        bgmv_over_mbgmv=Spread.of([0.8]),
        wrong=None,
    )


def fit(r2_at_least: float | None = None) -> FitResult:
    """bgmv fits worse than mbgmv."""
    case = FitCase(batch_sizes=(4, 8), largest_ranks=(8, 16), num_layers=None, r2_at_least=r2_at_least)
    point = FitPoint(mix="cycle", batch_size=4, largest_rank=16, sum_of_ranks=48, mbgmv_us=10.0, bgmv_us=12.0)
    return FitResult(
        case=case,
        repeats=5,
        points=(point,),
        mbgmv=Line(0.1, 5.0, 0.99),
        bgmv=Line(0.2, 4.0, 0.95),
        wrong=None,
    )


def load(at_most: float | None = None) -> LoadResult:
    """The whole adapter takes 1.02 times a contiguous copy, a layer 1.2 times."""
    return LoadResult(
        case=LoadCase(lora_rank=64, layer_at_most=at_most),
        adapter_bytes=134_217_728,
        adapter_us=Spread.of([2550.0]),
        contiguous_us=Spread.of([2500.0]),
        adapter_ratio=Spread.of([1.02]),
        layer_us=Spread.of([96.0]),
        contiguous_layer_us=Spread.of([80.0]),
        layer_ratio=Spread.of([1.2]),
        wrong=None,
    )


@pytest.mark.parametrize(
    ("case", "verdict"),
    [
        (operator(), Verdict.MET),
        (operator(at_most_us=120), Verdict.MET),
        (operator(at_most_us=119.5), Verdict.MISSED),
        (operator(at_most=1.2), Verdict.MET),
        (operator(at_most_us=200, at_most=1.19), Verdict.MISSED),
        (forms(), Verdict.MET),
        (forms(bgmv_at_least=0.8), Verdict.MET),
        (forms(bgmv_at_least=3), Verdict.MISSED),
        (forms(mbgmv_at_most=1.3), Verdict.MET),
        (forms(mbgmv_at_most=1.1), Verdict.MISSED),
        (fit(), Verdict.MET),
        (fit(0.95), Verdict.MET),
        (fit(0.96), Verdict.MISSED),
        (load(), Verdict.MET),
        (load(1.2), Verdict.MET),
        (load(1.1), Verdict.MISSED),
        (load(1.01), Verdict.MISSED),
    ],
)
def test_verdicts(case: CaseResult, verdict: Verdict) -> None:
    assert verdict_on(case) is verdict
    assert case.as_json()["verdict"] == verdict


def result(*operators: OperatorResult) -> KernelResult:
    """All sections, of which `operators` are the products."""
    return KernelResult(
        facts=FACTS,
        products=operators,
        attention=(),
        lora=(operator(),),
        forms=(forms(mbgmv_at_most=1.1),),
        fit=(fit(0.96),),
        loads=(load(1.1),),
    )


def wrong() -> OperatorResult:
    """One whose time says nothing, however short."""
    kept = operator(at_most_us=200)
    return OperatorResult(
        name=kept.name,
        time_us=kept.time_us,
        floor_us=kept.floor_us,
        peers=kept.peers,
        error=0.5,
        wrong="differs from its float32 reference",
        required=kept.required,
    )


def test_a_wrong_operator_decides() -> None:
    assert result(operator()).verdict is Verdict.MISSED
    assert verdict_on(wrong()) is Verdict.CANNOT_TELL
    assert result(wrong()).verdict is Verdict.CANNOT_TELL


def test_the_result_as_json() -> None:
    content = orjson.loads(orjson.dumps(result(operator(at_most_us=119)).as_json()))
    assert (content["kind"], content["verdict"], content["device"]) == ("kernels", "missed", "a GPU")
    assert "attention" not in content
    (product,) = content["products"]
    assert (product["times_floor"], product["time_us"]["median"], product["verdict"]) == (1.2, 120, "missed")
    assert (content["most_repeats"], product["repeats"]) == (9, 3)
    assert [(peer["name"], peer["repeats"], peer["basis"]) for peer in product["peers"]] == [
        ("torch", 3, "as ours"),
        ("FlashInfer", 0, "as ours"),
        ("PEFT", 2, "called layer by layer"),
    ]
    (fitted,) = content["fit"]
    assert [content[section][0]["repeats"] for section in ("forms", "fit", "loads")] == [1, 5, 1]
    assert (fitted["batch_sizes"], fitted["mbgmv"]["alpha"], len(fitted["points"])) == ([4, 8], 0.1, 1)
    assert content["loads"][0]["lora_rank"] == 64


def test_the_result_as_text() -> None:
    """In the width of a terminal, without anything cut off."""
    console = Console(width=80, record=True, soft_wrap=True, file=io.StringIO())
    console.print(
        render_kernels(
            result(
                operator(at_most_us=119, at_most=1.3),
            )
        )
    )
    text = console.export_text()
    assert "…" not in text
    lines = text.splitlines()
    row = next(line for line in lines if line.startswith("1 token") and "119, 1.3x" in line)
    assert row.split() == ["1", "token", "120.0", "119.0", "to", "121.0", "119,", "1.3x", "missed"]
    assert any(line.split() == ["1", "token", "100.0", "1.20x", "151.0", "-", "900.5"] for line in lines)
    assert "PEFT: called layer by layer, 2 repeats" in lines
    assert not any(line.startswith("torch:") for line in lines)
    assert "random data, adapters on q_proj, up to 9 repeats" in text
    assert any(line.startswith("LoRA of a step, µs, 5 repeats") for line in lines)
    assert "No time of FlashInfer in '1 token': OSError: no nvcc" in text
    missed = [line for line in lines if line.startswith("Missed:")]
    assert missed == [
        "Missed: products, '1 token': takes 120.00 µs; the recipe allows 119 µs.",
        "Missed: forms, '32 of rank 32': mbgmv takes 1.250x the time of bgmv; the recipe allows 1.1x.",
        "Missed: fit, 'batches to 8, ranks to 16': R² of bgmv is 0.9500; the recipe requires 0.96.",
        "Missed: loads, 'rank 64': a layer takes 1.200x a contiguous copy; the recipe allows 1.1x.",
    ]
