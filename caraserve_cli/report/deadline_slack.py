"""How much of their deadlines answers left, or by how much they missed them. Knows the keys of output
lines.
"""

from __future__ import annotations

from collections.abc import Mapping

from caraserve_cli.report.distribution import Distribution

# Bins of the histogram, each 5% of the deadline: from twice the deadline taken, or more, to none of it.
_BINS = 40
_LOWEST_SHARE = -1.0
_BIN_SHARE = 2.0 / _BINS


class DeadlineSlack:
    """Counts and distributions over the answers that carried a deadline; lines of versions that did not write
    `slack_ms` are left out.

    Attributes:
        margins_ms: of deadlines that were met, what was left.
        overruns_ms: of those that were missed, by how much.
    """

    def __init__(self) -> None:
        self.margins_ms = Distribution()
        self.overruns_ms = Distribution()
        self._counts = [0] * _BINS

    def add_row(self, row: Mapping[str, object]) -> None:
        """Take in one output line."""
        slack_ms, latency_ms = row.get("slack_ms"), row["latency_ms"]
        if not isinstance(slack_ms, (int, float)) or not isinstance(latency_ms, (int, float)):
            return
        if slack_ms >= 0:
            self.margins_ms.add(slack_ms)
        else:
            self.overruns_ms.add(-slack_ms)
        deadline_ms = slack_ms + latency_ms
        share = slack_ms / deadline_ms if deadline_ms > 0 else _LOWEST_SHARE
        self._counts[min(max(int((share - _LOWEST_SHARE) / _BIN_SHARE), 0), _BINS - 1)] += 1

    def as_json(self) -> dict[str, object]:
        """Counts, and the histogram of slack as a share of the deadline; the first bin holds all below."""
        edges = [round(_LOWEST_SHARE + _BIN_SHARE * number, 6) for number in range(_BINS + 1)]
        return {
            "met": self.margins_ms.count,
            "missed": self.overruns_ms.count,
            "histogram_share_left": {"edges": edges, "counts": list(self._counts)},
        }
