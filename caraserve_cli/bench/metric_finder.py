"""The metrics of a result, whatever its kind: every figure that the JSON of a result has for each repeat.

A metric's name is the way to it (`figures`). Its unit, direction, basis and tolerance follow from it, by the
first rule of `_RULES` that fits; a recipe can say otherwise (`gate_rules`). One run of a benchmark, in a
process of its own, gives one value: the median of its repeats.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from caraserve_cli.bench.figures import figures_of, is_figure, is_spread, repeats_of
from caraserve_cli.bench.metric import Basis, Direction, Metric

# By what fraction a figure may become worse before that is a regression. Ratios of one run repeat to 1% on a
# busy machine (recipes/quick.toml, 5 processes beside 3 that burn both cores: 0.4% to 1.2%), absolute times
# of one machine do not. A tail is the noisiest figure that there is. All three chosen, not measured.
_RATIO_TOLERANCE = 0.05
_ABSOLUTE_TOLERANCE = 0.10
_TAIL_TOLERANCE = 0.25

_TAIL = re.compile(r"(^|_|\b)(p9\d+|p99\d*|longest|max|worst)(_|\b|$)")


@dataclass(frozen=True, slots=True)
class _Rule:
    """What a name means that `pattern` is found in."""

    pattern: str
    unit: str
    direction: Direction | None


# Of a metric's whole name, the first that fits.
_RULES: dict[Basis, tuple[_Rule, ...]] = {
    # Not ours, or the same work done in the way that ours is compared with.
    Basis.YARDSTICK: (
        _Rule(r"(copy_bytes|product_flops)_per_s$", "1/s", Direction.HIGHER),
        _Rule(r"(^|: )(reference|contiguous)\w*_ms$", "ms", Direction.LOWER),
        _Rule(r"\bcontiguous\w*_us$|\b(torch(_alone)?_us|synchronised_ms)$", "", Direction.LOWER),
        _Rule(r"\bpeers: .*_us$", "us", Direction.LOWER),
        _Rule(r"^(peft-mixed|peft-one-adapter): seconds$", "s", Direction.LOWER),
        _Rule(r"^(peft-mixed|peft-one-adapter): tokens_per_s$", "tokens/s", Direction.HIGHER),
    ),
    # Of one run.
    Basis.RATIO: (
        _Rule(r"_over_(reference|mbgmv)\b|\bover_cached\b|_ratio$|\blora: share$", "x", Direction.LOWER),
        _Rule(r" / .*: ratio$|\bspeedup$", "x", Direction.HIGHER),
        _Rule(r"\b((slo_)?attainment|hit_rate|goodput_share)$", "share", Direction.HIGHER),
        # How far apart they may be the recipe says.
        _Rule(r"\battainment: (measured|simulated)$", "share", None),
    ),
    # What a user waits for.
    Basis.ABSOLUTE: (
        _Rule(r"tokens_per_s$", "tokens/s", Direction.HIGHER),
        _Rule(r"_per_s$|\bgoodput$", "1/s", Direction.HIGHER),
        _Rule(r"\bsaved_ms$", "ms", Direction.HIGHER),
        _Rule(r"_ms\b", "ms", Direction.LOWER),
        _Rule(r"_us$", "us", Direction.LOWER),
        _Rule(r"\bseconds$|_s$", "s", Direction.LOWER),
        _Rule(r"_bytes$", "bytes", Direction.LOWER),
        _Rule(r"\bmeasures: mean_\w+: (measured|simulated)$", "ms", None),
        _Rule("", "", None),
    ),
}

# Figures that a result has once, which are metrics nevertheless.
_SINGLE = ("copy_bytes_per_s", "product_flops_per_s", "startup_s")


def find_metrics(result: Mapping[str, object], *, each_repeat: bool = False) -> list[Metric]:
    """The metrics of one run's result; figures that are below zero, or no number, are left out.

    Args:
        result: what `--json` writes.
        each_repeat: all repeats of the run instead of their median, to be shown and not to be judged.
    """
    metrics: dict[str, Metric] = {}
    for name, repeats in _figures(result):
        if not repeats or not all(map(_is_repeat, repeats)):
            continue
        values = repeats if each_repeat else (statistics.median(repeats),)
        if name not in metrics:
            metrics[name] = describe_metric(name, values)
    return list(metrics.values())


def describe_metric(name: str, values: tuple[float, ...]) -> Metric:
    """What a metric's name says of it."""
    basis, rule = next(
        (basis, rule) for basis, rules in _RULES.items() for rule in rules if re.search(rule.pattern, name)
    )
    is_tail = bool(_TAIL.search(name))
    tolerance = _RATIO_TOLERANCE if basis is Basis.RATIO else _ABSOLUTE_TOLERANCE
    return Metric(
        name=name,
        # The last rule's names have none.
        unit=rule.unit or (name[-2:] if rule.pattern else ""),
        basis=basis,
        direction=rule.direction,
        tolerance=_TAIL_TOLERANCE if is_tail else tolerance,
        is_tail=is_tail,
        values=values,
    )


def _figures(result: Mapping[str, object]) -> Iterator[tuple[str, tuple[float, ...]]]:
    """Name → the repeats."""
    for name, value in figures_of(result):
        if is_spread(value):
            yield name, repeats_of(value)
        elif isinstance(value, float) and name.rpartition(": ")[2] in _SINGLE:
            yield name, (value,)


def _is_repeat(value: object) -> bool:
    """JSON has null for what is no number."""
    return is_figure(value) and math.isfinite(value) and value >= 0
