"""Number, sum and maximum of the adapters' ranks on each replica, as adapters come and go."""

from __future__ import annotations

import numpy as np

from caraserve_cli.perf.batch_load import FloatArray, RankSums


class RankTally:
    """The aggregates of N replicas. Rank 0 is the base alone, and counts nowhere.

    How often each rank is there is kept too: when the last adapter of the largest rank leaves, the next
    largest is known. A run has a handful of ranks.
    """

    def __init__(self, num_replicas: int) -> None:
        self._counts: list[dict[int, int]] = [{} for _ in range(num_replicas)]
        self.sums = RankSums(*np.zeros((3, num_replicas)))

    def add(self, replica: int, lora_rank: int) -> None:
        """One more adapter on a replica."""
        if not lora_rank:
            return
        counts = self._counts[replica]
        counts[lora_rank] = counts.get(lora_rank, 0) + 1
        self.sums.num_adapters[replica] += 1
        self.sums.lora_rank_sum[replica] += lora_rank
        if lora_rank > self.sums.lora_rank_max[replica]:
            self.sums.lora_rank_max[replica] = lora_rank

    def remove(self, replica: int, lora_rank: int) -> None:
        """One that was added is gone.

        Raises:
            KeyError: none of this rank is there.
        """
        if not lora_rank:
            return
        counts = self._counts[replica]
        counts[lora_rank] -= 1
        self.sums.num_adapters[replica] -= 1
        self.sums.lora_rank_sum[replica] -= lora_rank
        if not counts[lora_rank]:
            del counts[lora_rank]
            self.sums.lora_rank_max[replica] = max(counts, default=0)

    def of(self, replica: int) -> RankSums[int]:
        """The aggregates of one replica."""
        sums = self.sums
        return RankSums(
            int(sums.num_adapters[replica]),
            int(sums.lora_rank_sum[replica]),
            int(sums.lora_rank_max[replica]),
        )

    def with_one(self, lora_rank: int, num_new: FloatArray | None = None) -> RankSums[FloatArray]:
        """The aggregates if each replica had one adapter more.

        Args:
            lora_rank: of that adapter.
            num_new: 1.0 where it would be another one and 0.0 where it is counted already, shape [N]; None
                for another one everywhere.
        """
        if not lora_rank:
            return self.sums
        num_adapters, lora_rank_sum, lora_rank_max = self.sums
        if num_new is None:
            return RankSums(
                num_adapters + 1.0, lora_rank_sum + lora_rank, np.maximum(lora_rank_max, lora_rank)
            )
        return RankSums(
            num_adapters + num_new,
            lora_rank_sum + lora_rank * num_new,
            np.maximum(lora_rank_max, lora_rank),
        )
