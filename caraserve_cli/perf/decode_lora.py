"""What adapters add to decoding steps, measured in steps as a replica computes them.

The line of a kernel (`lora_kernels`) is of the kernel alone, with one request an adapter. Steps also have more
requests than adapters, and on a CPU with a small base what costs is not the ranks but how many operations they
are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from caraserve_cli.perf.batch_load import BatchLoad
from caraserve_cli.perf.least_squares import FitQuality, fit_costs

# Of a step in which adapters seem to add nothing, which is noise.
_LEAST_MS = 1e-3


@dataclass(frozen=True, slots=True)
class DecodeLora:
    """ms = step_ms + lora_rank_ms · (sum of ranks) + adapter_ms · adapters + request_ms · requests, with the
    kernel that does not pad."""

    step_ms: float
    lora_rank_ms: float
    adapter_ms: float
    request_ms: float
    quality: FitQuality

    @staticmethod
    def fit(batches: Sequence[BatchLoad], added_ms: Sequence[float]) -> DecodeLora:
        """The model through steps of several sizes.

        Args:
            batches: at least four, all with adapters.
            added_ms: what each step took longer than one of the base alone.

        Raises:
            ProfileError: the points follow no such model.
        """
        added_ms = [max(_LEAST_MS, each) for each in added_ms]
        rows = [_terms(batch) for batch in batches]
        costs = fit_costs(rows, added_ms)
        predicted = [sum(c * t for c, t in zip(costs, row, strict=True)) for row in rows]
        quality = FitQuality.of(predicted, added_ms)
        quality.require("adapters in decoding steps")
        return DecodeLora(*costs, quality=quality)

    def added_ms(self, batch: BatchLoad) -> float:
        """What adapters add to a step; 0 without any."""
        if not batch.ranks.num_adapters:
            return 0.0
        costs = (self.step_ms, self.lora_rank_ms, self.adapter_ms, self.request_ms)
        return sum(c * t for c, t in zip(costs, _terms(batch), strict=True))


def _terms(batch: BatchLoad) -> tuple[float, float, float, float]:
    ranks = batch.ranks
    return 1.0, float(ranks.lora_rank_sum), float(ranks.num_adapters), float(batch.num_requests)
