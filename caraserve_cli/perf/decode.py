"""How long a decoding step takes, by the size of its batch: measured points, and straight lines between them.

No formula: what bounds a step changes with its size. Where a batch is padded to the sizes of captured graphs,
these are the sizes that are measured, and no lines lie between them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from caraserve_cli.perf.least_squares import FitQuality


@dataclass(frozen=True, slots=True)
class DecodeModel:
    """`steps_ms[i]` is the time of a step of `batch_sizes[i]` requests; both ascend. `is_padded`: a batch is
    computed as if it were of the next of these sizes."""

    batch_sizes: tuple[int, ...]
    steps_ms: tuple[float, ...]
    quality: FitQuality
    is_padded: bool = False

    @staticmethod
    def fit(batch_sizes: Sequence[int], times_ms: Sequence[float], *, is_padded: bool = False) -> DecodeModel:
        """The points, corrected by least squares to what never falls with the batch size (isotonic
        regression, by pooling adjacent violators).

        Args:
            batch_sizes: of each step, in any order, the same one as often as measured.
            times_ms: of each step, above 0.
            is_padded: as in `DecodeModel`.

        Raises:
            ProfileError: what was measured does not ascend.
        """
        sizes = sorted(set(batch_sizes))
        # Pools of neighbouring sizes with one time: [first size, sum of times, number of times].
        pools: list[tuple[int, float, int]] = []
        for size in sizes:
            of_size = [time_ms for each, time_ms in zip(batch_sizes, times_ms, strict=True) if each == size]
            first, total, count = size, sum(of_size), len(of_size)
            while pools and pools[-1][1] / pools[-1][2] >= total / count:
                first, before, num_before = pools.pop()
                total, count = total + before, count + num_before
            pools.append((first, total, count))
        ends = [*(first for first, _, _ in pools[1:]), sizes[-1] + 1]
        steps_ms = tuple(
            total / count
            for (first, total, count), end in zip(pools, ends, strict=True)
            for size in sizes
            if first <= size < end
        )
        by_size = dict(zip(sizes, steps_ms, strict=True))
        quality = FitQuality.of([by_size[size] for size in batch_sizes], times_ms)
        quality.require("decoding steps")
        return DecodeModel(tuple(sizes), steps_ms, quality, is_padded)

    def step_ms(self, batch_size: int) -> float:
        """Milliseconds of a step that decodes for `batch_size` requests; 0 for none. Beyond the largest
        measured batch, the last line goes on, padded or not."""
        if batch_size <= 0:
            return 0.0
        sizes, steps_ms = self.batch_sizes, self.steps_ms
        if batch_size <= sizes[0] or len(sizes) == 1:
            return steps_ms[0]
        above = min(bisect_left(sizes, batch_size), len(sizes) - 1)
        if self.is_padded and batch_size <= sizes[above]:
            return steps_ms[above]
        slope = (steps_ms[above] - steps_ms[above - 1]) / (sizes[above] - sizes[above - 1])
        return steps_ms[above] + slope * (batch_size - sizes[above])
