"""What the README of the recipes says of those that are embedded is what they say."""

from __future__ import annotations

from pathlib import Path

from caraserve_cli.bench.catalogue import embedded_recipes
from tests.bench.paper_table import HEAD, paper_table

README = Path(__file__).parents[2] / "recipes" / "README.md"


def test_the_table_of_the_papers_experiments_is_theirs() -> None:
    lines = README.read_text().splitlines()
    first = lines.index(HEAD[0])
    rows = paper_table()
    assert lines[first : first + len(rows) + 1] == [*rows, ""], "python -m tests.bench.paper_table prints it"


def test_every_recipe_is_in_a_table() -> None:
    cells = [line.split(" | ")[0] for line in README.read_text().splitlines() if line.startswith("| `")]
    named = "".join(cells)
    assert [path.stem for path in embedded_recipes() if f"`{path.stem}`" not in named] == []
