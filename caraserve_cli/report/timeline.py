"""What the engines were busy with, over the time of a session, in memory that does not grow with it."""

from __future__ import annotations

from caraserve_cli.events import StepRecord

# Intervals of a timeline: twice as long whenever there would be more. Chosen: more than a wide screen shows.
MAX_INTERVALS = 400
_FIRST_INTERVAL_MS = 5.0
_COUNTS = ("running", "waiting")
_SHARES = ("kv_use", "adapter_pool_use")
_PEAKS = (*_COUNTS, *_SHARES)
_TOKENS = ("prefill_tokens", "decode_tokens")
_SUMS = (*_TOKENS, "adapter_loads", "preemptions")
_STAYS = "adapter_pool_use"  # adapters stay in the pool while an engine is idle


class Timeline:
    """Peaks and sums in equal intervals from the first step on; an `EventSink`.

    Takes 8 columns of at most MAX_INTERVALS numbers, and 4 more for every replica after the first.
    """

    def __init__(self) -> None:
        self.interval_ms = _FIRST_INTERVAL_MS
        self._start_ms: float | None = None
        self._sums: dict[str, list[float]] = {name: [] for name in _SUMS}
        self._peaks: dict[int, dict[str, list[float]]] = {}  # by replica; columns end with its last step

    def on_step(self, record: StepRecord) -> None:
        """A peak counts in every interval that the step touches; its tokens are spread over them, other sums
        counted where it ends."""
        if self._start_ms is None:
            self._start_ms = record.start_ms
        while record.end_ms - self._start_ms >= self.interval_ms * MAX_INTERVALS:
            self._halve()
        # A replica's first step may have begun before the one that was told of first.
        first = max(int((record.start_ms - self._start_ms) / self.interval_ms), 0)
        last = max(int((record.end_ms - self._start_ms) / self.interval_ms), first)
        pool_bytes = record.adapter_pool_bytes
        values = (
            record.num_running,
            record.num_waiting,
            record.num_kv_blocks_used / record.num_kv_blocks if record.num_kv_blocks else 0,
            record.adapter_pool_used_bytes / pool_bytes if pool_bytes else 0,
        )
        columns = self._peaks.setdefault(record.replica, {name: [] for name in _PEAKS})
        for name, value in zip(_PEAKS, values, strict=True):
            column = columns[name]
            if last >= len(column):
                column += [column[-1] if name == _STAYS and column else 0] * (last + 1 - len(column))
            for index in range(first, last + 1):
                if value > column[index]:
                    column[index] = value
        sums = (
            record.num_prefill_tokens,
            record.num_decode_tokens,
            record.num_adapter_loads,
            record.num_preempted,
        )
        for name, value in zip(_SUMS, sums, strict=True):
            column = self._sums[name]
            if last >= len(column):
                column += [0] * (last + 1 - len(column))
            begin = first if name in _TOKENS else last
            each = value / (last + 1 - begin)
            for index in range(begin, last + 1):
                column[index] += each

    def as_json(self) -> dict[str, object]:
        """Columns of equal length. Of several replicas requests are added up, each one's peak in the
        interval, and `kv_use` and `adapter_pool_use`, shares of 0 to 1, are those of the fullest one.
        """
        return {
            "start_ms": round(self._start_ms or 0.0, 3),
            "interval_ms": self.interval_ms,
            "replicas": len(self._peaks),
            "peaks": {name: self._peak(name) for name in _PEAKS},
            "sums": {name: [round(value, 3) for value in column] for name, column in self._sums.items()},
        }

    def _peak(self, name: str) -> list[float]:
        length = len(self._sums["prefill_tokens"])
        columns = []
        for of_replica in self._peaks.values():
            column = of_replica[name]
            rest = column[-1] if name == _STAYS else 0
            columns.append(column + [rest] * (length - len(column)))
        over_replicas = sum if name in _COUNTS else max
        return [round(over_replicas(values), 4) for values in zip(*columns, strict=True)]

    def _halve(self) -> None:
        self.interval_ms *= 2
        for column in self._sums.values():
            column[:] = [sum(column[index : index + 2]) for index in range(0, len(column), 2)]
        for columns in self._peaks.values():
            for column in columns.values():
                column[:] = [max(column[index : index + 2]) for index in range(0, len(column), 2)]
