"""What the answers of one simulation come to. Memory does not grow with their number."""

from __future__ import annotations

from collections import Counter

from caraserve_cli.report.distribution import Distribution
from caraserve_cli.simulation.simulated_request import Answered


class AnswerTally:
    """Counts the answers to requests `first` … `last - 1`, by the numbers that are their ids.

    Args:
        slo_ms: bound on the time per token; None where there is none.

    Attributes:
        time_per_token_ms: latency over the answer's tokens, the paper's measure.
        tpot_ms: of answers of more than one token.
        num_attained: within `slo_ms`.
        cold_starts: how adapters came.
    """

    def __init__(self, first: int, last: int, slo_ms: float | None) -> None:
        self._first, self._last, self._slo_ms = first, last, slo_ms
        self.time_per_token_ms, self.ttft_ms, self.tpot_ms = Distribution(), Distribution(), Distribution()
        self.num_attained = self.num_preemptions = 0
        self.cold_starts: Counter[str] = Counter()

    def add(self, answered: Answered) -> None:
        """One answer; whether it counts is decided here."""
        if not self._first <= int(answered.request.facts.id) < self._last:
            return
        time_per_token_ms = answered.time_per_token_ms
        self.time_per_token_ms.add(time_per_token_ms)
        self.ttft_ms.add(answered.ttft_ms)
        if (tpot_ms := answered.tpot_ms) is not None:
            self.tpot_ms.add(tpot_ms)
        self.num_attained += self._slo_ms is not None and time_per_token_ms <= self._slo_ms
        self.num_preemptions += answered.num_preemptions
        self.cold_starts[answered.cold_start.value] += 1
