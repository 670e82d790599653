"""The distinct adapters of the sequences that run, and the sums of their ranks, as these come and go."""

from __future__ import annotations

from caraserve_cli.perf.batch_load import NO_RANKS, RankSums


class RunningAdapters:
    """Each adapter counts once, however many sequences use it: a kernel reads its weights once.

    Attributes:
        ranks: their number, the sum and the largest of their ranks.
    """

    def __init__(self) -> None:
        self._num_users: dict[str, int] = {}
        self._num_of_rank: dict[int, int] = {}  # a run has a handful of ranks
        self.ranks: RankSums[int] = NO_RANKS

    def add(self, adapter: str, lora_rank: int) -> None:
        """One more sequence that uses it runs."""
        num_users = self._num_users.get(adapter, 0)
        self._num_users[adapter] = num_users + 1
        if num_users:
            return
        self._num_of_rank[lora_rank] = self._num_of_rank.get(lora_rank, 0) + 1
        num_adapters, lora_rank_sum, lora_rank_max = self.ranks
        self.ranks = RankSums(num_adapters + 1, lora_rank_sum + lora_rank, max(lora_rank_max, lora_rank))

    def remove(self, adapter: str, lora_rank: int) -> None:
        """One that was added runs no more.

        Raises:
            KeyError: none that uses it was.
        """
        self._num_users[adapter] -= 1
        if self._num_users[adapter]:
            return
        del self._num_users[adapter]
        self._num_of_rank[lora_rank] -= 1
        num_adapters, lora_rank_sum, lora_rank_max = self.ranks
        if not self._num_of_rank[lora_rank]:
            del self._num_of_rank[lora_rank]
            lora_rank_max = max(self._num_of_rank, default=0)
        self.ranks = RankSums(num_adapters - 1, lora_rank_sum - lora_rank, lora_rank_max)
