"""How long the LoRA part of a decoding step takes on the GPU, by the ranks in the batch (paper, section 2).

Padded (BGMV, Punica) every adapter costs as much as the one with the largest rank; unpadded (MBGMV, S-LoRA)
each costs its own. Both are bound by reading the adapters' weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from caraserve_cli.perf.batch_load import RankSums
from caraserve_cli.perf.least_squares import FitQuality, fit_costs

# The paper's own fits; a line that explains less is not believed.
LEAST_KERNEL_R2 = 0.96
_WHY_NO_LINE = (
    "either other work disturbed it, then run `caraserve profile` again without that, or the base is so "
    "small that ranks hardly cost it anything, which comes out the same again and does no harm"
)


@dataclass(frozen=True, slots=True)
class KernelTimes:
    """What a kernel was measured to add to decoding steps.

    Attributes:
        is_padded: which kernel.
        batches: of each step, the ranks of its adapters.
        times_ms: of each step's LoRA part, all layers, above 0.
    """

    is_padded: bool
    batches: tuple[tuple[int, ...], ...]
    times_ms: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class LoraKernelModel:
    """ms = alpha_ms · |S| · (largest LoRA rank) + beta_ms if `is_padded`, alpha_ms · (sum of LoRA ranks) +
    beta_ms if not; S are the adapters of the batch."""

    is_padded: bool
    alpha_ms: float
    beta_ms: float
    quality: FitQuality

    @staticmethod
    def fit(
        batches: Sequence[Sequence[int]], times_ms: Sequence[float], *, is_padded: bool
    ) -> LoraKernelModel:
        """The model through batches of several ranks.

        Args:
            batches: the LoRA ranks of each batch.
            times_ms: of each batch's LoRA part in a step, above 0.
            is_padded: which kernel was measured.

        Raises:
            ProfileError: the line explains less than LEAST_KERNEL_R2 of what was measured.
        """
        rows = [(float(_work(_sums(lora_ranks), is_padded)), 1.0) for lora_ranks in batches]
        alpha_ms, beta_ms = fit_costs(rows, times_ms)
        quality = FitQuality.of([alpha_ms * work + beta_ms for work, _ in rows], times_ms)
        what = "padded LoRA kernel" if is_padded else "unpadded LoRA kernel"
        quality.require(what, LEAST_KERNEL_R2, _WHY_NO_LINE)
        return LoraKernelModel(is_padded, alpha_ms, beta_ms, quality)

    def batch_ms(self, lora_ranks: Sequence[int]) -> float:
        """Milliseconds that adapters of these ranks add to a decoding step; 0 without adapters."""
        return self.sums_ms(_sums(lora_ranks))

    def sums_ms(self, ranks: RankSums[int]) -> float:
        """The same for a batch of which only the sums are known."""
        return self.alpha_ms * _work(ranks, self.is_padded) + self.beta_ms if ranks.num_adapters else 0.0


def _sums(lora_ranks: Sequence[int]) -> RankSums[int]:
    return RankSums(len(lora_ranks), sum(lora_ranks), max(lora_ranks, default=0))


def _work(ranks: RankSums[int], is_padded: bool) -> int:
    return ranks.num_adapters * ranks.lora_rank_max if is_padded else ranks.lora_rank_sum
