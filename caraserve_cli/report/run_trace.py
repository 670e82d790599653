"""trace.json: a session on Perfetto's rows, in memory and size that do not grow with it.

Knows steps and answers, no files. Of the device only what steps tell is known: a step's span runs from the
end of the step before it (or its planning) until its tokens are there, and the host's own work lies in it; a
copy is drawn at the step that found it complete, as long as the copying took, and may have begun elsewhere;
CPU workers are drawn in the whole step that they had a part of. Every replica of a fleet has rows of its own;
what it did and the driver was not told before it died is not there. Failed requests have no times to draw,
and are counted.

Events of the first and of the last part are kept; what was left out between is counted and drawn as such.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

from caraserve_cli.core import Completion
from caraserve_cli.events import StepRecord

# Steps and requests that are kept of each end, about 1 KB each in memory and in the file. Chosen, so that all
# of it is below 10 MB.
KEPT_STEPS = 3_000
KEPT_REQUESTS = 1_500

_SCHEDULER, _GPU, _COPY, _CPU = 1, 2, 3, 4
_REQUESTS, _FIRST_REPLICA = 1, 2
_ROWS = {
    _SCHEDULER: "scheduler: what each step was planned to hold",
    _GPU: "device stream, as known by step",
    _COPY: "copy stream: adapters, drawn where their arrival was noticed",
    _CPU: "CPU workers: steps that they had a part of",
}

Event = dict[str, object]
_Item = TypeVar("_Item")


class BothEnds(Generic[_Item]):
    """The first and the last `kept` of a stream of `num_seen`; `num_left_out` lay between."""

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._first: list[_Item] = []
        self._last: deque[_Item] = deque(maxlen=kept)
        self.num_seen = 0

    def add(self, item: _Item) -> None:
        self.num_seen += 1
        if len(self._first) < self._kept:
            self._first.append(item)
        else:
            self._last.append(item)

    @property
    def num_left_out(self) -> int:
        return self.num_seen - len(self._first) - len(self._last)

    @property
    def gap(self) -> tuple[_Item, _Item] | None:
        """The last before what was left out and the first after it; None where nothing was."""
        return (self._first[-1], self._last[0]) if self.num_left_out else None

    def __iter__(self) -> Iterator[_Item]:
        yield from self._first
        yield from self._last


class RunTrace:
    """Collects while a session goes on; an `EventSink`. While it runs an event costs an append."""

    def __init__(self, kept_steps: int = KEPT_STEPS, kept_requests: int = KEPT_REQUESTS) -> None:
        self._steps: BothEnds[StepRecord] = BothEnds(kept_steps)
        self._completions: BothEnds[tuple[object, ...]] = BothEnds(kept_requests)
        self._num_failures = 0

    @property
    def is_empty(self) -> bool:
        """Whether there was neither a step nor an answer."""
        return not (self._steps.num_seen or self._completions.num_seen)

    def on_step(self, record: StepRecord) -> None:
        self._steps.add(record)

    def on_failure(self) -> None:
        """A request that was taken in has failed, or was dropped for its deadline."""
        self._num_failures += 1

    def on_completion(self, completion: Completion) -> None:
        """Keep the times of an answer, and not the answer."""
        request, times = completion.request, completion.timings
        self._completions.add(
            (
                request.id,
                request.adapter,
                completion.cold_start.value,
                completion.num_preemptions,
                len(completion.token_ids),
                completion.replica,
                times.arrival_ms,
                times.first_scheduled_ms,
                times.first_token_ms,
                times.last_token_ms,
            )
        )

    def events(self) -> Iterator[Event]:
        """In the trace event format, one by one; times are microseconds of the run's clock."""
        replicas = sorted({record.replica for record in self._steps} | {0})
        yield from _names(replicas)
        copies = _CopyRows()
        for number, record in enumerate(self._steps):
            yield from _beside_events(number, record) if record.is_beside else _step_events(record, copies)
        if gap := self._steps.gap:
            name = f"{self._steps.num_left_out} steps left out"
            for replica in replicas:
                yield _slice(_SCHEDULER, name, gap[0].end_ms, gap[1].start_ms, replica=replica)
        for number, answer in enumerate(self._completions):
            yield from _life(number, answer)

    def notes(self) -> dict[str, object]:
        """What a reader of the events must know."""
        return {
            "scope": "this session; the first and the last part of a long one",
            "steps_left_out": self._steps.num_left_out,
            "requests_left_out": self._completions.num_left_out,
            "failed_requests_not_drawn": self._num_failures,
            "known_by_step_only": "device, copies and CPU workers",
        }


class _CopyRows:
    """Where a copy may begin on its row: rows hold no two slices at once."""

    def __init__(self) -> None:
        self._free_ms: dict[int, float] = {}

    def take(self, record: StepRecord) -> float:
        """When the copy that a record tells of is drawn to begin."""
        free_ms = self._free_ms.get(record.replica, 0.0)
        self._free_ms[record.replica] = record.end_ms
        return min(max(record.end_ms - record.adapter_load_ms, free_ms), record.end_ms)


def _names(replicas: Sequence[int]) -> Iterator[Event]:
    yield _meta("process_name", _REQUESTS, 0, "requests")
    for replica in replicas:
        process = _FIRST_REPLICA + replica
        yield _meta("process_name", process, 0, "engine" if replicas == [0] else f"replica {replica}")
        for row, name in _ROWS.items():
            yield _meta("thread_name", process, row, name)


def _meta(kind: str, process: int, row: int, name: str) -> Event:
    return {"ph": "M", "name": kind, "pid": process, "tid": row, "args": {"name": name}}


def _slice(row: int, name: str, start_ms: float, end_ms: float, *, replica: int, **args: object) -> Event:
    return {
        "ph": "X",
        "name": name,
        "pid": _FIRST_REPLICA + replica,
        "tid": row,
        "ts": _us(start_ms),
        "dur": _us(max(end_ms - start_ms, 0.0)),
        "args": args,
    }


def _counter(name: str, record: StepRecord, **values: float) -> Event:
    pid = _FIRST_REPLICA + record.replica
    return {"ph": "C", "name": name, "pid": pid, "ts": _us(record.end_ms), "args": values}


def _us(ms: float) -> float:
    return round(ms * 1000, 1)


def _tokens(record: StepRecord) -> dict[str, int]:
    return {"prefill_tokens": record.num_prefill_tokens, "decode_tokens": record.num_decode_tokens}


def _beside_events(number: int, record: StepRecord) -> list[Event]:
    """A span of its own, for other steps lie across it."""
    common: Event = {
        "cat": "beside",
        "id": number,
        "pid": _FIRST_REPLICA + record.replica,
        "tid": 0,
        "name": "beside other steps",
    }
    return [
        {**common, "ph": "b", "ts": _us(record.start_ms), "args": _tokens(record)},
        {**common, "ph": "e", "ts": _us(record.end_ms)},
    ]


def _step_events(record: StepRecord, copies: _CopyRows) -> list[Event]:
    start_ms, end_ms, replica = record.start_ms, record.end_ms, record.replica
    kind = "mixed" if record.num_prefill_tokens and record.num_decode_tokens else "prefill"
    kind = kind if record.num_prefill_tokens else "decode"
    plan = {
        **_tokens(record),
        "preempted": record.num_preempted,
        "memory_retries": record.num_memory_retries,
        "adapter_loads": dict(record.loads_by_strategy),
    }
    events: list[Event] = [
        {
            "ph": "i",
            "s": "t",
            "name": "plan",
            "pid": _FIRST_REPLICA + replica,
            "tid": _SCHEDULER,
            "ts": _us(start_ms),
            "args": plan,
        },
        _slice(_GPU, kind, start_ms, end_ms, replica=replica, **_tokens(record), stall_ms=record.stall_ms),
        _counter("requests", record, running=record.num_running, waiting=record.num_waiting),
        _counter("KV blocks in use", record, blocks=record.num_kv_blocks_used),
    ]
    if record.adapter_pool_bytes:
        events.append(_counter("adapter pool in use", record, bytes=record.adapter_pool_used_bytes))
    if record.num_adapter_loads or record.adapter_load_ms:
        loads = {
            "adapters": record.num_adapter_loads,
            "bytes": record.adapter_bytes,
            "copying_ms": record.adapter_load_ms,
        }
        events.append(_slice(_COPY, "load", copies.take(record), end_ms, replica=replica, **loads))
    if record.num_assists:
        assists = {
            "chunks": record.num_assists,
            "too_late": record.num_failed_assists,
            "spared_loads": record.num_spared_loads,
        }
        events.append(_slice(_CPU, "assist", start_ms, end_ms, replica=replica, **assists))
    return events


def _life(number: int, answer: tuple[object, ...]) -> list[Event]:
    """A request's row: queued, prefill, decode, each within the whole, which ends last: of equal times the
    order here tells a reader what lies in what."""
    request_id, adapter, cold_start, preemptions, num_tokens, replica, *times = answer
    args = {"adapter": adapter, "cold_start": cold_start, "preemptions": preemptions, "tokens": num_tokens}
    if replica is not None:
        args["replica"] = replica
    arrival, scheduled, first, last = times
    parts = (("queued", arrival, scheduled), ("prefill", scheduled, first), ("decode", first, last))
    whole = _span(number, str(request_id), arrival, last, args)
    within = [
        event for name, start_ms, end_ms in parts for event in _span(number, name, start_ms, end_ms, {})
    ]
    return [*whole[:1], *within, *whole[1:]]


def _span(number: int, name: str, start_ms: object, end_ms: object, args: Event) -> list[Event]:
    """Its beginning and end; nothing where one is not known."""
    if not isinstance(start_ms, (int, float)) or not isinstance(end_ms, (int, float)):
        return []
    common: Event = {"cat": "request", "id": number, "pid": _REQUESTS, "tid": 0, "name": name}
    return [
        {**common, "ph": "b", "ts": _us(start_ms), "args": args},
        {**common, "ph": "e", "ts": _us(end_ms)},
    ]
