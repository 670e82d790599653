"""A whole benchmark, tiny: real systems on the embedded sample, through the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.command import SAMPLE
from tests.cli.conftest import Caraserve, caraserve

__all__ = ["caraserve"]

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
