"""A whole benchmark, tiny: real systems on the embedded sample, through the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from caraserve_cli.bench.benchmark import run_benchmark
from caraserve_cli.bench.recipe import load_recipe
from caraserve_cli.bench.system import SystemRun
from caraserve_cli.errors import InputError, OutputError
from tests.bench.conftest import WriteRecipe
from tests.cli.command import SAMPLE
from tests.cli.conftest import Caraserve, caraserve

__all__ = ["caraserve"]

EOS_TOKEN_ID = 257

RECIPE = """
description = "tiny"
systems = ["caraserve", "peft-mixed", "peft-one-adapter"]
batch_size = 4
warmups = 0
repeats = 1
[workload]
base = "{sample}/base"
adapters = ["{sample}/adapters"]
requests = "{requests}"
{more}
[[require]]
ours = "caraserve"
over = "peft-mixed"
at_least = {at_least}
"""


def write_recipe(folder: Path, at_least: float, more: str = "") -> Path:
    lines = (SAMPLE / "requests.jsonl").read_text().splitlines()
    wanted = [line for line in lines if json.loads(line)["adapter"] in ("upper", "reverse", "count", None)]
    requests = folder / "r.jsonl"
    requests.write_text("\n".join(wanted[:9]))
    recipe = folder / "tiny.toml"
    recipe.write_text(RECIPE.format(sample=SAMPLE, requests=requests, more=more, at_least=at_least))
    return recipe


@pytest.mark.parametrize(
    ("at_least", "status", "more"),
    [(1e-6, 0, ""), (1e6, 4, ""), (1e-6, 0, "output_tokens = 5")],
    ids=["met", "missed", "fixed length"],
)
def test_all_systems_give_the_same_tokens(
    caraserve: Caraserve,
    tmp_path: Path,
    at_least: float,
    status: int,
    more: str,
) -> None:
    result_file = tmp_path / "result.json"
    ended = caraserve("bench", write_recipe(tmp_path, at_least, more), "--json", result_file)
    assert ended.returncode == status, ended.stderr
    for name in ("caraserve", "peft-mixed", "peft-one-adapter"):
        assert name in ended.stdout
    assert ended.stdout.count("9/9") == 3
    result = json.loads(result_file.read_text())
    assert result["verdict"] == ("met" if status == 0 else "missed")
    tokens = {system["output_tokens"] for system in result["systems"]}
    assert len(tokens) == 1
    if more:
        assert tokens == {9 * 5}


def test_the_list_of_recipes(caraserve: Caraserve) -> None:
    ended = caraserve("bench", "--list")
    assert ended.returncode == 0
    assert [line.split()[0] for line in ended.stdout.splitlines()] == ["peft", "peft-long"]


def test_every_system_has_its_turn_and_gives_the_right_tokens(write_recipe: WriteRecipe) -> None:
    told: list[tuple[str, int, SystemRun]] = []
    result = run_benchmark(load_recipe(write_recipe()), lambda *run: told.append(run))

    # Each repeat begins with another system.
    assert [(name, repeat) for name, repeat, _ in told] == [
        ("caraserve", 1),
        ("peft-mixed", 1),
        ("peft-one-adapter", 1),
        ("peft-mixed", 2),
        ("peft-one-adapter", 2),
        ("caraserve", 2),
    ]
    answers = told[0][2].answers
    assert all(run.answers == answers for _, _, run in told)
    texts = {name: bytes(token for token in tokens if token < 256) for name, tokens in answers.items()}
    assert texts == {"u0": b"HORIZON", "c0": b"5", "b0": b"fig", "u1": b"TEA", "c1": b"7"}
    # Padding after a short answer is no output; the EOS token is, where the answer got that far.
    ends = {name: tokens[-1] == EOS_TOKEN_ID for name, tokens in answers.items()}
    assert ends == {"u0": True, "c0": True, "b0": True, "u1": False, "c1": True}
    assert [each.output_tokens for each in result.comparison.systems] == [8 + 2 + 4 + 3 + 2] * 3


def test_a_result_that_cannot_be_written(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    result = run_benchmark(load_recipe(write_recipe(systems=("caraserve",))), lambda *_: None)
    with pytest.raises(OutputError, match=r"--json: .* cannot be written: No such file"):
        result.write(tmp_path / "none" / "result.json")


def test_peft_needs_an_adapter(write_recipe: WriteRecipe) -> None:
    recipe = load_recipe(write_recipe(rows=({"prompt": "Input: fig\nOutput: "},)))
    with pytest.raises(InputError, match="no request of the workload names an adapter"):
        run_benchmark(recipe, lambda *_: None)
