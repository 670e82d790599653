"""The table of the paper's experiments in recipes/README.md, as the recipes have it.

    python -m tests.bench.paper_table

prints it; `test_readme.py` compares.
"""

from __future__ import annotations

import sys

from caraserve_cli.bench.bench_recipe import BenchRecipe
from caraserve_cli.bench.catalogue import embedded_recipes
from caraserve_cli.bench.paper import Paper

HEAD = ("| recipe | what it asks | what the paper reports |", "| --- | --- | --- |")


def paper_table() -> list[str]:
    """The lines of the table."""
    rows = [
        f"| `{each.recipe.name}` | {each.recipe.description} | {reported(each.paper)} |"
        for each in (BenchRecipe.load(path) for path in embedded_recipes())
        if each.paper is not None
    ]
    return [*HEAD, *rows]


def reported(paper: Paper) -> str:
    """What the paper reports, in a line: by metric the systems' figures, each once."""
    by_metric: dict[str, dict[str, None]] = {}
    for each in paper.reported:
        if each.value is not None:
            by_metric.setdefault(each.metric, {})[f"{each.system} {each.theirs}"] = None
    return "; ".join(f"{metric}: {', '.join(systems)}" for metric, systems in by_metric.items())


if __name__ == "__main__":
    sys.stdout.write("\n".join(paper_table()) + "\n")
