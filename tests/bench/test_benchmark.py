"""A whole benchmark, tiny: real systems on the embedded sample, through the command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from caraserve_cli.bench.benchmark import run_benchmark
from caraserve_cli.bench.catalogue import embedded_recipes
from caraserve_cli.bench.recipe import load_recipe
from caraserve_cli.bench.system import SystemRun
from caraserve_cli.errors import InputError
from tests.bench.conftest import WriteRecipe
from tests.cli.command import SAMPLE
from tests.cli.conftest import Caraserve, caraserve

__all__ = ["caraserve"]

EOS_TOKEN_ID = 257


@pytest.mark.parametrize(
    ("at_least", "status", "output_tokens"),
    [(1e-6, 0, None), (1e6, 4, None), (1e-6, 0, 5)],
    ids=["met", "missed", "fixed length"],
)
def test_all_systems_give_the_same_tokens(
    caraserve: Caraserve,
    write_recipe: WriteRecipe,
    tmp_path: Path,
    at_least: float,
    status: int,
    output_tokens: int | None,
) -> None:
    result_file = tmp_path / "result.json"
    recipe = write_recipe(at_least=at_least, output_tokens=output_tokens)
    ended = caraserve("bench", recipe, "--json", result_file)
    assert ended.returncode == status, ended.stderr
    for name in ("caraserve", "peft-mixed", "peft-one-adapter"):
        assert name in ended.stdout
    assert ended.stdout.count("5/5") == 3
    result = json.loads(result_file.read_text())
    assert result["verdict"] == ("met" if status == 0 else "missed")
    tokens = {system["output_tokens"] for system in result["systems"]}
    assert len(tokens) == 1
    if output_tokens is not None:
        assert tokens == {5 * output_tokens}


def test_the_list_of_recipes(caraserve: Caraserve) -> None:
    ended = caraserve("bench", "--list")
    assert ended.returncode == 0
    names = [line.split()[0] for line in ended.stdout.splitlines()]
    assert names == [path.stem for path in embedded_recipes()]


def test_every_system_has_its_turn_and_gives_the_right_tokens(write_recipe: WriteRecipe) -> None:
    told: list[tuple[str, int, SystemRun]] = []
    result = run_benchmark(load_recipe(write_recipe(repeats=2)), lambda *run: told.append(run))

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


def test_what_a_checkpoint_asks_of_generate_changes_no_answer(
    write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    """Qwen2.5's generation_config.json has a repetition penalty, which `generate` obeys even when greedy."""
    base = shutil.copytree(SAMPLE / "base", tmp_path / "base")
    path = base / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "repetition_penalty": 3.0}))
    result = run_benchmark(load_recipe(write_recipe(base=base)), lambda *_: None)
    assert result.comparison.disagreeing == ()


def test_peft_needs_an_adapter(write_recipe: WriteRecipe) -> None:
    recipe = load_recipe(write_recipe(rows=({"prompt": "Input: fig\nOutput: "},)))
    with pytest.raises(InputError, match="no request of the workload names an adapter"):
        run_benchmark(recipe, lambda *_: None)
