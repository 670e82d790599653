"""What adapters add to decoding steps, measured in steps as a replica computes them, by the sum of their
ranks: measured points, and straight lines between them.

The line of a kernel (`lora_kernels`) is of the kernel alone, with one request an adapter. Steps also have
more requests than adapters; and on a CPU with a small base no line goes through the points, for what costs
there is less the ranks than how many operations they are.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from caraserve_cli.errors import ProfileError
from caraserve_cli.perf.batch_load import BatchLoad
from caraserve_cli.perf.least_squares import FitQuality

# Of a step in which adapters seem to add nothing, which is noise.
_LEAST_MS = 1e-3


@dataclass(frozen=True, slots=True)
class DecodeLora:
    """`steps_ms[i]` is added by one request each of adapters whose ranks have the sum `lora_rank_sums[i]`;
    both ascend. Each further request adds `request_ms`. With the kernel that does not pad."""

    lora_rank_sums: tuple[int, ...]
    steps_ms: tuple[float, ...]
    request_ms: float
    quality: FitQuality

    @staticmethod
    def fit(batches: Sequence[BatchLoad], added_ms: Sequence[float]) -> DecodeLora:
        """The points, corrected to what never falls with the sum of ranks.

        Args:
            batches: all with adapters.
            added_ms: what each step took longer than one of the base alone.

        Raises:
            ProfileError: fewer than two of them have one request an adapter, with different sums of ranks; or
                the points follow no such model.
        """
        added_ms = [max(_LEAST_MS, each) for each in added_ms]
        by_sum: defaultdict[int, list[float]] = defaultdict(list)
        for batch, each_ms in zip(batches, added_ms, strict=True):
            if batch.num_requests <= batch.ranks.num_adapters:
                by_sum[batch.ranks.lora_rank_sum].append(each_ms)
        if len(by_sum) < 2:
            raise ProfileError(f"adapters in decoding steps: {len(by_sum)} sizes of them fit")
        steps_ms: list[float] = []
        for _, of_sum in sorted(by_sum.items()):
            steps_ms.append(max(fmean(of_sum), *steps_ms[-1:], _LEAST_MS))
        model = DecodeLora(tuple(sorted(by_sum)), tuple(steps_ms), 0.0, FitQuality(1.0, 0.0, len(batches)))
        more_ms = [
            (each_ms - model.added_ms(batch)) / (batch.num_requests - batch.ranks.num_adapters)
            for batch, each_ms in zip(batches, added_ms, strict=True)
            if batch.num_requests > batch.ranks.num_adapters
        ]
        request_ms = max(0.0, fmean(more_ms)) if more_ms else 0.0
        model = DecodeLora(model.lora_rank_sums, model.steps_ms, request_ms, model.quality)
        quality = FitQuality.of([model.added_ms(batch) for batch in batches], added_ms)
        quality.require("adapters in decoding steps")
        return DecodeLora(model.lora_rank_sums, model.steps_ms, request_ms, quality)

    def added_ms(self, batch: BatchLoad) -> float:
        """What adapters add to a step; 0 without any. Beyond the largest sum the last line goes on."""
        ranks = batch.ranks
        if not ranks.num_adapters:
            return 0.0
        sums, steps_ms = self.lora_rank_sums, self.steps_ms
        further_ms = self.request_ms * max(0, batch.num_requests - ranks.num_adapters)
        if ranks.lora_rank_sum <= sums[0]:
            return steps_ms[0] + further_ms
        above = min(bisect_left(sums, ranks.lora_rank_sum), len(sums) - 1)
        slope = (steps_ms[above] - steps_ms[above - 1]) / (sums[above] - sums[above - 1])
        return steps_ms[above] + slope * (ranks.lora_rank_sum - sums[above]) + further_ms
