"""A recipe's file as it is to be measured, and all that one run of it gives: what its kind measures, and what
a paper reports of it. Knows no terminal and writes no file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from caraserve_cli.bench.comparison import Verdict
from caraserve_cli.bench.measured import Tell
from caraserve_cli.bench.paper import PAPER, Paper, PaperComparison, compare_with_paper, parse_paper
from caraserve_cli.bench.recipe_file import read_recipe
from caraserve_cli.bench.recipe_kinds import (
    AnyRecipe,
    load_any_recipe,
    measure_recipe,
    shrink_recipe,
    simulate_recipe,
)

if TYPE_CHECKING:
    from rich.console import RenderableType


SIMULATED_WORDS = (
    "Simulated on virtual time by the profile {profile}: nothing was measured, here or there; the machine "
    "below is where it was computed."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRun:
    """What one run gave.

    Attributes:
        content: what `--json` writes.
        rendered: the same for a terminal.
        beside: see `recipe_kinds.Measured`.
        comparison: with the paper; None where the recipe has none.
        remarks: what a reader must know first.
    """

    recipe: Path
    content: Mapping[str, object]
    rendered: RenderableType
    beside: Mapping[str, Mapping[str, object] | str]
    verdict: Verdict
    comparison: PaperComparison | None
    remarks: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRecipe:
    """A recipe, and what its file says beside the keys of its kind.

    Attributes:
        is_small: whether it is cut down, see `small`.
    """

    path: Path
    recipe: AnyRecipe
    paper: Paper | None
    is_small: bool

    @classmethod
    def load(cls, path: Path, *, is_small: bool = False) -> BenchRecipe:
        """Read and check all of a file.

        Raises:
            InputError: the file cannot be read, or it is to be small and the sample is not installed.
            OptionError: it is no TOML, has an unknown key, or a wrong value.
        """
        recipe = load_any_recipe(path)
        if is_small:
            recipe = shrink_recipe(recipe)
        return cls(path=path, recipe=recipe, paper=parse_paper(read_recipe(path)), is_small=is_small)

    def measure(
        self, tell: Tell, *, slow_decode: float | None = None, profile: Path | None = None
    ) -> BenchRun:
        """See `recipe_kinds.measure_recipe`; with a profile, `recipe_kinds.simulate_recipe`."""
        from rich.console import Group
        from rich.text import Text

        from caraserve_cli.bench.paper_terminal import render_paper
        from caraserve_cli.bench.small import SMALL_WORDS

        if profile is None:
            measured = measure_recipe(self.recipe, tell, slow_decode)
        else:
            measured = simulate_recipe(self.recipe, tell, profile)
        content = {**measured.result.as_json(), "small": self.is_small}
        remarks: tuple[str, ...] = (SMALL_WORDS,) if self.is_small else ()
        parts: list[RenderableType] = [*(Text(f"{words}\n", style="yellow") for words in remarks)]
        if profile is not None:  # in a terminal the result says so
            remarks += (SIMULATED_WORDS.format(profile=profile),)
        comparison = None
        if self.paper is not None:
            comparison = compare_with_paper(self.paper, [content])
            content[PAPER] = comparison.as_json()
            parts += [render_paper(comparison), ""]
        return BenchRun(
            recipe=self.path,
            content=content,
            rendered=Group(*parts, measured.rendered),
            beside=measured.beside,
            verdict=measured.result.verdict,
            comparison=comparison,
            remarks=remarks,
        )
