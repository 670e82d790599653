"""How often each adapter of a case is drawn, the most popular first. Knows no torch and starts nothing.

    popularity = 1.0                    # adapter k is drawn with the weight 1 / (k + 1) ** 1.0
    popularity = [                      # or: the first 22 draw half of the requests, the first 114 draw 90%
        { adapters = 22, share = 0.5 },
        { adapters = 114, share = 0.9 },
        { adapters = 512, share = 1 },
    ]

Adapters between two steps are drawn alike. Of more adapters than a case has, it has the most popular.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from caraserve_cli.bench.recipe_table import RecipeTable

_KEY = "popularity"


@dataclass(frozen=True, slots=True, kw_only=True)
class PopularityStep:
    """The `num_adapters` most popular adapters draw this share of all requests."""

    num_adapters: int
    share: float


# The exponent of a Zipf law, or steps that ascend to a share of 1.
Popularity = float | tuple[PopularityStep, ...]


def popularity_weights(popularity: Popularity, num_adapters: int) -> list[float]:
    """With which weight each of a case's adapters is drawn."""
    if isinstance(popularity, float):
        return [(index + 1) ** -popularity for index in range(num_adapters)]
    weights: list[float] = []
    last = PopularityStep(num_adapters=0, share=0.0)
    for step in popularity:
        num_alike = step.num_adapters - last.num_adapters
        weights += [(step.share - last.share) / num_alike] * num_alike
        last = step
    return weights[:num_adapters]


def parse_popularity(table: RecipeTable, num_adapters: int) -> Popularity | None:
    """The key `popularity` of a case with so many adapters; None where it is left out.

    Raises:
        OptionError: it is neither an exponent nor steps, or the steps are of fewer adapters.
    """
    if not isinstance(table.values.get(_KEY), list):
        return table.optional_positive(_KEY)
    steps = tuple(_parse_step(each) for each in table.tables(_KEY))
    sizes, shares = [each.num_adapters for each in steps], [each.share for each in steps]
    if not _ascends(sizes) or not _ascends(shares) or shares[-1] != 1:
        must_be = "steps whose 'adapters' and 'share' ascend, the last share being 1"
        raise table.wrong(_KEY, must_be, [[each.num_adapters, each.share] for each in steps])
    if sizes[-1] < num_adapters:
        raise table.wrong(_KEY, f"of at least the case's {num_adapters} adapters", sizes[-1])
    return steps


def _ascends(values: Sequence[float]) -> bool:
    return bool(values) and list(values) == sorted(set(values))


def _parse_step(table: RecipeTable) -> PopularityStep:
    step = PopularityStep(num_adapters=table.count("adapters", None), share=table.positive("share"))
    table.close()
    return step
