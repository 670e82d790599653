"""When the device and the workers had which op of one assisted prefill, on one clock, from outside of both.

The workers' words are watched by a process of its own (`assist_observer`): `sent` rises when the workers may
begin, `done` of a worker when it has ended. On a GPU what is queued is surrounded by events, whose clock is
tied to the host's by an event that the host waits for; its stream is held until all is queued, as if it came
from one CUDA graph. A worker that has no part of an op shows no span in it, or a very short one: its word
skips the op as soon as it has ended its last part.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from caraserve_cli.adapters.weights import AdapterWeights
from caraserve_cli.bench import assist_observer
from caraserve_cli.bench.assist_bench import AssistBench
from caraserve_cli.bench.assist_prefill import Prefill, run_way
from caraserve_cli.bench.assist_result import OpSpans
from caraserve_cli.core import FUSED_MODULES
from caraserve_cli.errors import InputError
from caraserve_kernels.link_clock import pace

# Twice what launching an op takes with all its events. Chosen, not measured.
_HOLD_US_AN_OP = 200
_NUM_TIES = 10

# Nanoseconds of `perf_counter_ns`, word, value.
Change = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class _Mark:
    """A moment of the device: of the host's clock, or an event."""

    host_ns: int
    event: torch.cuda.Event | None

    @staticmethod
    def now(device: torch.device) -> _Mark:
        """When the device has computed what was queued so far; a CPU has."""
        event = None
        if device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
        return _Mark(time.perf_counter_ns(), event)

    def ns(self, tie: _Mark) -> int:
        """On the host's clock. `tie` is a moment known on both."""
        if self.event is None or tie.event is None:
            return self.host_ns
        return tie.host_ns + round(float(tie.event.elapsed_time(self.event)) * 1e6)


@dataclass(slots=True)
class _TracedLaunch:
    """`Prefill.launch` with a mark around everything; what was marked last counts."""

    prefill: Prefill
    tie: _Mark | None = None
    first_number: int = 0
    # Of each op: before sending, before the product, after it, after adding.
    marks: list[tuple[_Mark, _Mark, _Mark, _Mark]] = field(default_factory=list)

    def __call__(self) -> None:
        prefill, bench = self.prefill, self.prefill.bench
        device, ops = bench.setup.device, bench.assistant.ops
        self.first_number = bench.pool.last_number - len(prefill.ops) + 1
        self.tie = _tie(device)
        if device.type == "cuda":
            pace(torch.zeros(1, dtype=torch.int64, device=device), _HOLD_US_AN_OP * len(prefill.ops), 1e6)
        self.marks.clear()
        for (layer, group), y in zip(prefill.ops, prefill.ys, strict=True):
            sending = _Mark.now(device)
            ops.send(layer, group, prefill.xs[group])
            before = _Mark.now(device)
            prefill.multiply(group, y)
            after = _Mark.now(device)
            ops.receive(layer, group, y)
            self.marks.append((sending, before, after, _Mark.now(device)))


def trace_prefill(prefill: Prefill, lora_rank: int) -> tuple[OpSpans, ...]:
    """The ops of a prefill with the next adapter of this rank.

    Raises:
        InputError: the watching process does not start, or workers are late every time.
    """
    launch = _TracedLaunch(prefill)

    def way(weights: AdapterWeights) -> float | None:
        return prefill.assisted(launch, weights)

    with _observing(prefill.bench) as changes:
        run_way(way, prefill.bench, lora_rank)
    return tuple(_spans(launch, changes))


def _tie(device: torch.device) -> _Mark:
    """A moment on both clocks: of several, the one that the host learned of soonest."""
    if device.type != "cuda":
        return _Mark.now(device)
    torch.cuda.synchronize(device)
    ties: list[tuple[int, _Mark]] = []
    for _ in range(_NUM_TIES):
        began_ns = time.perf_counter_ns()
        mark = _Mark.now(device)
        assert mark.event is not None
        while not mark.event.query():  # type: ignore[no-untyped-call]
            pass
        ended_ns = time.perf_counter_ns()
        ties.append((ended_ns - began_ns, _Mark(ended_ns, mark.event)))
    return min(ties, key=lambda tie: tie[0])[1]


@contextmanager
def _observing(bench: AssistBench) -> Iterator[list[Change]]:
    """Watch the words `sent` and `done` meanwhile; afterwards the changes are in the list."""
    exchange, layout = bench.memory.exchange, bench.memory.layout
    sent_byte = layout.x_byte - (exchange.x.data_ptr() - exchange.sent.data_ptr())
    num_words = _done_word(bench) + exchange.done.numel()
    command = [sys.executable, "-I", str(Path(assist_observer.__file__))]
    command += [str(number) for number in (bench.memory.fd, sent_byte, num_words)]
    changes: list[Change] = []
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[bench.memory.fd], text=True
    ) as process:
        assert process.stdout is not None
        try:
            if process.stdout.readline() != "ready\n":
                raise InputError("the process that watches CPU workers did not start")
            yield changes
            said, _ = process.communicate()
        except BaseException:
            process.kill()
            raise
    changes += [(at_ns, word, value) for at_ns, word, value in json.loads(said)]


def _done_word(bench: AssistBench) -> int:
    """Where the first worker's word is, in words behind `sent`."""
    exchange = bench.memory.exchange
    return (exchange.done.data_ptr() - exchange.sent.data_ptr()) // exchange.sent.itemsize


def _spans(launch: _TracedLaunch, changes: Sequence[Change]) -> Iterator[OpSpans]:
    prefill, tie = launch.prefill, launch.tie
    assert tie is not None
    first_done = _done_word(prefill.bench)
    of_word: dict[int, list[tuple[int, int]]] = {}
    for at_ns, word, value in changes:
        of_word.setdefault(word, []).append((at_ns, value))
    dones = {word - first_done: raised for word, raised in of_word.items() if word >= first_done}
    for number, ((layer, group), marks) in enumerate(
        zip(prefill.ops, launch.marks, strict=True), start=launch.first_number
    ):
        sending, before, after, added = (mark.ns(tie) for mark in marks)
        sent_ns = _raised_ns(of_word.get(0, []), number)
        assert sent_ns is not None, "the op was computed"
        yield OpSpans(
            name=f"layer {layer}, {' + '.join(FUSED_MODULES[group])}",
            sending_ns=sending,
            sent_ns=sent_ns,
            product_begin_ns=before,
            product_end_ns=after,
            added_ns=added,
            worker_end_ns=_worker_ends(dones, number, sent_ns),
        )


def _worker_ends(dones: Mapping[int, Sequence[tuple[int, int]]], number: int, sent_ns: int) -> dict[int, int]:
    """Worker → when it had ended the op, of those that were at it."""
    ends = {worker: _raised_ns(raised, number) for worker, raised in dones.items()}
    return {worker: end_ns for worker, end_ns in sorted(ends.items()) if end_ns and end_ns > sent_ns}


def _raised_ns(raised: Sequence[tuple[int, int]], number: int) -> int | None:
    """When a word was first seen to be at least `number`."""
    return next((at_ns for at_ns, value in raised if value >= number), None)
