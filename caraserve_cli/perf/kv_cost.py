"""What the length of contexts adds to a decoding step: attention reads all keys and values of its requests.

Measured with the same batch over several contexts: what is common to a batch size is the base's time
(`decode`), and the slope over tokens in the cache is the same for all of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from caraserve_cli.errors import ProfileError
from caraserve_cli.perf.least_squares import FitQuality


class ContextStep(NamedTuple):
    """A decoding step of `batch_size` requests whose contexts have `kv_tokens` together."""

    batch_size: int
    kv_tokens: float


@dataclass(frozen=True, slots=True)
class KvCost:
    """ms = token_ms · (tokens in the cache), beside the base's time. `quality` is that of the measured steps
    with the time of each batch size told by them too."""

    token_ms: float
    quality: FitQuality

    @staticmethod
    def fit(steps: Sequence[ContextStep], times_ms: Sequence[float]) -> KvCost:
        """One slope through steps of several batch sizes, each with its own time without contexts.

        Args:
            steps: at least one batch size with two contexts.
            times_ms: of each step, above 0.

        Raises:
            ProfileError: no batch size has two contexts, or the points follow no such line.
        """
        by_size: defaultdict[int, list[tuple[float, float]]] = defaultdict(list)
        for step, time_ms in zip(steps, times_ms, strict=True):
            by_size[step.batch_size].append((step.kv_tokens, time_ms))
        means = {
            size: (sum(x for x, _ in of_size) / len(of_size), sum(y for _, y in of_size) / len(of_size))
            for size, of_size in by_size.items()
        }
        sum_xx = sum((x - means[size][0]) ** 2 for size, of_size in by_size.items() for x, _ in of_size)
        if not sum_xx:
            raise ProfileError("contexts of decoding steps: no batch size was measured with two of them")
        sum_xy = sum(
            (x - means[size][0]) * (y - means[size][1])
            for size, of_size in by_size.items()
            for x, y in of_size
        )
        token_ms = max(0.0, sum_xy / sum_xx)
        predicted = [means[size][1] + token_ms * (kv - means[size][0]) for size, kv in steps]
        quality = FitQuality.of(predicted, times_ms)
        quality.require("contexts of decoding steps")
        return KvCost(token_ms, quality)
