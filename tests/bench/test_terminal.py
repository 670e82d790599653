"""What a benchmark prints in the end."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from caraserve_cli.bench.benchmark import BenchFacts, BenchResult
from caraserve_cli.bench.comparison import compare
from caraserve_cli.bench.recipe import Requirement
from caraserve_cli.bench.system import SystemRun
from caraserve_cli.bench.terminal import render

FACTS = BenchFacts(
    recipe="tiny",
    description="two systems",
    caraserve_version="0.1.0",
    commit="abc123",
    versions={"torch": "2.13.0"},
    device="a CPU, 2 threads",
    num_threads=2,
    num_cores=2,
    load_average=0.25,
    dtype="float32",
    num_requests=2,
    num_adapters=1,
    prompt_tokens=1234,
    batch_size=32,
    warmups=1,
    repeats=3,
)
ANSWERS: dict[str, tuple[int, ...]] = {"a": (1, 2), "b": (3, 4)}


def printed(other: dict[str, tuple[int, ...]], at_least: float | None = 2.5) -> list[str]:
    runs = {
        "ours": [SystemRun(answers=ANSWERS, seconds=seconds) for seconds in (0.001, 0.002, 0.004)],
        "theirs": [SystemRun(answers=other, seconds=0.004)] * 3,
    }
    required = [] if at_least is None else [Requirement(ours="ours", over="theirs", at_least=at_least)]
    comparison = compare(runs, required)
    console = Console(file=StringIO(), width=80)
    console.print(render(BenchResult(FACTS, comparison)))
    assert isinstance(console.file, StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_a_missed_requirement() -> None:
    assert printed(ANSWERS) == [
        "tiny: two systems",
        "2 requests, 1 adapters, 1,234 prompt tokens, batches of 32",
        "3 interleaved repeats, warm-ups: 1",
        "a CPU, 2 threads, float32, torch 2.13.0, commit abc123",
        "load average before: 0.2 on 2 cores",
        "",
        "system  tokens/s  lowest to highest  seconds  tokens  equal answers",
        "ours       2,000     1,000 to 4,000     0.00       4            2/2",
        "theirs     1,000     1,000 to 1,000     0.00       4            2/2",
        "",
        "tokens/s       ratio  lowest to highest  required",
        "ours / theirs  2.00x     1.00x to 4.00x      2.5x  missed",
        "",
        "Missed: ours gives 2.00x the output tokens a second of theirs; the recipe",
        "requires 2.5x.",
    ]


def test_a_file_says_of_which_code_it_is() -> None:
    runs = {name: [SystemRun(answers=ANSWERS, seconds=0.004)] for name in ("ours", "theirs")}
    assert BenchResult(FACTS, compare(runs, [])).as_json()["commit"] == "abc123"


def test_answers_that_differ() -> None:
    lines = printed({"a": (1, 2), "b": (3, 5)})
    assert "theirs     1,000     1,000 to 1,000     0.00       4            1/2" in lines
    assert "ours / theirs  2.00x     1.00x to 4.00x      2.5x  cannot tell" in lines
    assert lines[-2:] == [
        "Cannot tell: 1 of 2 answers of theirs are not those of ours, so the work is not",
        "the same.",
    ]


@pytest.mark.parametrize(
    ("at_least", "last_line"),
    [
        (1.5, "All answers are equal and every requirement is met."),
        (None, "All answers are equal; nothing is required."),
    ],
)
def test_what_passes(at_least: float | None, last_line: str) -> None:
    assert printed(ANSWERS, at_least)[-1] == last_line
