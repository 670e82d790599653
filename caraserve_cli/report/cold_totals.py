"""How the adapters of a session's answers came to the device. Knows the keys of an output line, no steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from caraserve_cli.core import ColdStart
from caraserve_cli.report.distribution import Distribution
from caraserve_cli.report.metrics import share

STRATEGY_TIMES = ("ttft_ms", "load_ms", "load_hidden_ms", "load_wait_ms", "assisted_ms")
COLD_TIMES = ("load_ms", "load_hidden_ms", "load_wait_ms", "disk_wait_ms", "room_wait_ms", "stalled_ms")


class ColdTotals:
    """Counts and times over answers; takes a few kilobytes.

    Attributes:
        by_strategy: answers by how their adapter came.
        times_by_strategy: each of STRATEGY_TIMES, by the same.
        times: each of COLD_TIMES, over the answers that name an adapter; undefined ones are left out.
    """

    def __init__(self) -> None:
        self.by_strategy: Counter[str] = Counter()
        self.times_by_strategy: dict[str, dict[str, Distribution]] = {}
        self.times: Mapping[str, Distribution] = {name: Distribution() for name in COLD_TIMES}

    def add_row(self, row: Mapping[str, object]) -> None:
        """Take in one output line."""
        self.by_strategy[str(row["cold_start"])] += 1
        if row["adapter"] is None:
            return
        strategy = str(row["cold_start"])
        if strategy not in self.times_by_strategy:
            self.times_by_strategy[strategy] = {name: Distribution() for name in STRATEGY_TIMES}
        for times in (self.times, self.times_by_strategy[strategy]):
            for name, distribution in times.items():
                value = row[name]
                if isinstance(value, (int, float)):
                    distribution.add(value)

    @property
    def num_hits(self) -> int:
        """Answers whose adapter was on the device."""
        return self.by_strategy[ColdStart.RESIDENT.value]

    @property
    def num_with_adapter(self) -> int:
        return self.by_strategy.total() - self.by_strategy[ColdStart.NONE.value]

    @property
    def hit_rate(self) -> float | None:
        """Of the device's pool, 0 to 1; None when no answer names an adapter."""
        return share(self.num_hits, self.num_with_adapter)
