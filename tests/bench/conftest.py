"""A recipe over a few requests of the embedded sample."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from caraserve_cli.bench.system import SYSTEM_NAMES
from tests.cli.command import SAMPLE, write_rows

WriteRecipe = Callable[..., Path]

# Two adapters, one of them with lora_bias, and the base alone; prompts and answers of different lengths.
ROWS: tuple[dict[str, object], ...] = (
    {"id": "u0", "prompt": "Input: horizon\nOutput: ", "adapter": "upper", "max_tokens": 12},
    {"id": "c0", "prompt": "Input: whale\nOutput: ", "adapter": "count", "max_tokens": 12},
    {"id": "b0", "prompt": "Input: fig\nOutput: ", "max_tokens": 12},
    {"id": "u1", "prompt": "Input: teapot\nOutput: ", "adapter": "upper", "max_tokens": 3},
    {"id": "c1", "prompt": "Input: chimney\nOutput: ", "adapter": "count", "max_tokens": 12},
)


@pytest.fixture
def write_recipe(tmp_path: Path) -> WriteRecipe:
    """Writes a recipe over the rows above.

    Args of the returned function, by name: `rows` in place of them, `systems` in place of all, `base` in
    place of the sample's; how many `warmups` and `repeats`; `output_tokens` of every answer; `at_least` that
    many times the tokens a second of peft-mixed are required.
    """

    def write(
        *,
        rows: Sequence[Mapping[str, object]] = ROWS,
        systems: Sequence[str] = SYSTEM_NAMES,
        base: Path = SAMPLE / "base",
        warmups: int = 0,
        repeats: int = 1,
        output_tokens: int | None = None,
        at_least: float | None = None,
    ) -> Path:
        write_rows(tmp_path / "requests.jsonl", rows)
        lines = [
            'description = "a tiny benchmark"',
            f"systems = {json.dumps(list(systems))}",
            "batch_size = 3",
            f"warmups = {warmups}",
            f"repeats = {repeats}",
            "[workload]",
            f'base = "{base}"',
            f'adapters = ["{SAMPLE / "adapters"}"]',
            'requests = "requests.jsonl"',
        ]
        if output_tokens is not None:
            lines.append(f"output_tokens = {output_tokens}")
        if at_least is not None:
            lines += ["[[require]]", 'ours = "caraserve"', 'over = "peft-mixed"', f"at_least = {at_least}"]
        recipe = tmp_path / "tiny.toml"
        recipe.write_text("\n".join(lines))
        return recipe

    return write
