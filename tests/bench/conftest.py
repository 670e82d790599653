"""A recipe over a few requests of the embedded sample."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from caraserve_cli.bench.system import SYSTEM_NAMES
from tests.cli.command import SAMPLE

WriteRecipe = Callable[..., Path]

# Two adapters, one of them with lora_bias, and the base alone; prompts and answers of different lengths.
_ROWS: tuple[dict[str, object], ...] = (
    {"id": "u0", "prompt": "Input: horizon\nOutput: ", "adapter": "upper", "max_tokens": 12},
    {"id": "c0", "prompt": "Input: whale\nOutput: ", "adapter": "count", "max_tokens": 12},
    {"id": "b0", "prompt": "Input: fig\nOutput: ", "max_tokens": 12},
    {"id": "u1", "prompt": "Input: teapot\nOutput: ", "adapter": "upper", "max_tokens": 3},
    {"id": "c1", "prompt": "Input: chimney\nOutput: ", "adapter": "count", "max_tokens": 12},
)


@pytest.fixture
def write_recipe(tmp_path: Path) -> WriteRecipe:
    """Writes a recipe over the rows above.

    Args of the returned function: `rows` in place of them; `systems` in place of all.
    """

    def write(rows: tuple[dict[str, object], ...] = _ROWS, systems: tuple[str, ...] = SYSTEM_NAMES) -> Path:
        (tmp_path / "requests.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        recipe = tmp_path / "tiny.toml"
        recipe.write_text(
            f"""
            description = "two adapters of the sample"
            systems = {json.dumps(systems)}
            batch_size = 3
            warmups = 0
            repeats = 2
            [workload]
            base = "{SAMPLE / "base"}"
            adapters = ["{SAMPLE / "adapters"}"]
            requests = "requests.jsonl"
            """
        )
        return recipe

    return write
