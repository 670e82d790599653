"""What the engine was busy with, over the time of a session, in memory that does not grow with it."""

from __future__ import annotations

from caraserve_cli.events import StepRecord

# Intervals of a timeline: twice as long whenever there would be more. Chosen: more than a wide screen shows.
MAX_INTERVALS = 400
_FIRST_INTERVAL_MS = 5.0
_PEAKS = ("running", "waiting", "kv_use", "adapter_pool_use")
_SUMS = ("prefill_tokens", "decode_tokens", "adapter_loads", "preemptions")


class Timeline:
    """Peaks and sums in equal intervals from the first step on; an `EventSink`."""

    def __init__(self) -> None:
        self.interval_ms = _FIRST_INTERVAL_MS
        self._start_ms: float | None = None
        self._columns: dict[str, list[float]] = {name: [] for name in (*_PEAKS, *_SUMS)}

    def on_step(self, record: StepRecord) -> None:
        """A peak counts in every interval that the step touches, a sum where the step ends."""
        if self._start_ms is None:
            self._start_ms = record.start_ms
        while record.end_ms - self._start_ms >= self.interval_ms * MAX_INTERVALS:
            self._halve()
        first = max(int((record.start_ms - self._start_ms) / self.interval_ms), 0)
        last = max(int((record.end_ms - self._start_ms) / self.interval_ms), first)
        columns = self._columns
        missing = last + 1 - len(columns["running"])
        if missing > 0:
            for name, column in columns.items():
                # Adapters stay in the pool while the engine is idle.
                stays = name == "adapter_pool_use" and column
                column.extend([column[-1] if stays else 0] * missing)
        pool_bytes = record.adapter_pool_bytes
        peaks = (
            record.num_running,
            record.num_waiting,
            record.num_kv_blocks_used / record.num_kv_blocks if record.num_kv_blocks else 0,
            record.adapter_pool_used_bytes / pool_bytes if pool_bytes else 0,
        )
        for name, value in zip(_PEAKS, peaks, strict=True):
            column = columns[name]
            for index in range(first, last + 1):
                if value > column[index]:
                    column[index] = value
        columns["prefill_tokens"][last] += record.num_prefill_tokens
        columns["decode_tokens"][last] += record.num_decode_tokens
        columns["adapter_loads"][last] += record.num_adapter_loads
        columns["preemptions"][last] += record.num_preempted

    def as_json(self) -> dict[str, object]:
        """Columns of equal length. `kv_use` and `adapter_pool_use` are shares, 0 to 1."""
        return {
            "start_ms": round(self._start_ms or 0.0, 3),
            "interval_ms": self.interval_ms,
            "peaks": {name: [round(value, 4) for value in self._columns[name]] for name in _PEAKS},
            "sums": {name: list(self._columns[name]) for name in _SUMS},
        }

    def _halve(self) -> None:
        self.interval_ms *= 2
        for name, column in self._columns.items():
            pairs = [column[index : index + 2] for index in range(0, len(column), 2)]
            self._columns[name] = [max(pair) if name in _PEAKS else sum(pair) for pair in pairs]
