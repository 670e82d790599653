"""A CPU worker: sleeps until it is told of a ticket, then computes its part of each op as the rows come.

It never trusts that an op will come, nor that it is in time. Every wait ends when the ticket has failed; what
a failed ticket leaves undone is skipped. So that a late worker cannot spoil a later step, nobody writes a
result before all workers have ended what they were given earlier (`WorkerTicket.before`), and nobody says
that it is done with an op before the first one of the ticket is sent: until then the device may be waiting
for a worker of the same index that is dead, and would take the word for that one's.

Of a module that several workers share each computes a slice of the LoRA rows, says so (`shrunk`), and waits
until the others have. The same rules keep what lies between them: nobody begins a ticket before all have
ended the earlier ones, so what a late worker writes, or a dead one has left, is no later ticket's, and nobody
takes a new worker's word for its predecessor's. The next op is sent only when all are done with this one.

Knows no adapters and no devices. One process a core, as in CaraServe; which part is whose: `own_parts`.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import torch

from caraserve_cli.coldstart.arena_view import ArenaView
from caraserve_cli.coldstart.cpu_lora import add_group
from caraserve_cli.coldstart.exchange_memory import ExchangeLayout, ExchangeMemory
from caraserve_cli.coldstart.own_parts import OwnPart, iter_own_parts
from caraserve_cli.coldstart.parts_ahead import PartsAhead
from caraserve_cli.coldstart.read_ahead import ReadAhead
from caraserve_cli.coldstart.ticket_memory import TicketMemory, WorkerTicket
from caraserve_kernels.lora_layout import AdapterLayout, FusedGroup

# To a worker: a ticket lies in this place. From a worker, once: it is ready, and this is its process.
PLACE_MESSAGE = struct.Struct("i")
READY_MESSAGE = struct.Struct("i")
# How long a worker that has ended a ticket looks for the next one before it sleeps. Chosen, not measured.
_SPIN_FOR_TICKET_NS = 100_000
# Waiting for rows, it looks without pause for the first microseconds (the gap between two ops of a short
# prompt on a GPU), then lets others have the core between looks, as on a machine with fewer cores than
# processes; after longer than most steps take it sleeps. Chosen, not measured.
_SPIN_NS = 100_000
_YIELD_NS = 20_000_000
_SLEEP_S = 50e-6
_WARM_UP_TOKENS, _WARM_UP_RANK = 16, 8


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What all workers of a pool have in common.

    Attributes:
        groups: fused groups of a layer, in the order of the tables.
        layout: of the exchange.
        arena_bytes: size of the arena.
        max_ops, max_segments: of the ticket memory.
        tokens_per_worker: from which another worker computes further rows of a module.
    """

    groups: Sequence[FusedGroup]
    layout: ExchangeLayout
    arena_bytes: int
    max_ops: int
    max_segments: int
    tokens_per_worker: int


class SharedMemory:
    """What workers share, mapped from the fds in the order arena, exchange, tickets, which it owns."""

    def __init__(self, spec: WorkerSpec, fds: Sequence[int]) -> None:
        arena_fd, exchange_fd, tickets_fd = fds
        self.arena = ArenaView(arena_fd, spec.arena_bytes, spec.layout.dtype)
        self.exchange = ExchangeMemory.attach(exchange_fd, spec.layout)
        self.tickets = TicketMemory(tickets_fd, spec.max_ops, spec.max_segments)


def run_worker(spec: WorkerSpec, memory: SharedMemory, index: int, core: int, wakes: socket.socket) -> None:
    """Be worker `index`, on core `core`, until the other end of `wakes` is closed."""
    # A core may have been taken from the program since it was chosen; the worker then runs where it can.
    with suppress(OSError):
        os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    with torch.inference_mode():
        _warm_up(spec.groups[0], spec.layout.dtype)
        wakes.send(READY_MESSAGE.pack(os.getpid()))
        _Worker(spec, memory, index, wakes).serve()


class _Worker:
    def __init__(self, spec: WorkerSpec, memory: SharedMemory, index: int, wakes: socket.socket) -> None:
        self._spec, self._memory, self._index, self._wakes = spec, memory, index, wakes
        exchange = memory.exchange
        self._sent, self._done, self._failed = exchange.sent, exchange.done, exchange.failed
        self._shrunk = exchange.shrunk

    def serve(self) -> None:
        """Work until the pool closes."""
        while (message := self._receive()) is not None:
            (place,) = PLACE_MESSAGE.unpack(message)
            self._work(self._memory.tickets.read(place))

    def _receive(self) -> bytes | None:
        """The next message; None when there will be none."""
        until_ns = time.perf_counter_ns() + _SPIN_FOR_TICKET_NS
        while time.perf_counter_ns() < until_ns:
            with suppress(BlockingIOError):
                return self._wakes.recv(PLACE_MESSAGE.size, socket.MSG_DONTWAIT) or None
        return self._wakes.recv(PLACE_MESSAGE.size) or None

    def _work(self, ticket: WorkerTicket) -> None:
        first_number = ticket.ticket.first_number
        ahead = self._parts_of(ticket)
        if self._wait(partial(self._may_begin, ticket), first_number, ahead.advance):
            while (part := ahead.next_part()) is not None:
                number = first_number + part.op
                # With the ops between its parts it has nothing to do.
                self._done[self._index] = number - 1
                if not self._wait(partial(self._is_sent, number), first_number, ahead.advance):
                    break
                ahead.shrink_next()
                if part.peers and not self._meet(part, number, first_number):
                    break
                ahead.expand_next()
                self._done[self._index] = number
        # Of a ticket that has failed nothing is added any more, whatever is said to be done.
        self._done[self._index] = ticket.ticket.last_number

    def _meet(self, part: OwnPart, number: int, first_number: int) -> bool:
        """Say that this worker's LoRA rows of an op are there, and wait for those of its peers: True; or
        until the ticket has failed: False. Nothing is made ready meanwhile: peers begin and end together, and
        whoever does something else keeps the others waiting."""
        self._shrunk[self._index] = number
        return self._wait(partial(self._have_shrunk, part.peers, number), first_number, _do_nothing)

    def _have_shrunk(self, workers: Sequence[int], number: int) -> bool:
        return all(self._shrunk[worker] >= number for worker in workers)

    def _parts_of(self, ticket: WorkerTicket) -> PartsAhead:
        spec, memory = self._spec, self._memory
        parts = iter_own_parts(ticket, spec.groups, self._index, spec.tokens_per_worker)
        read_ahead, arena = ReadAhead(memory.arena), memory.arena.elements
        return PartsAhead(ticket, parts, spec.groups, memory.exchange, read_ahead, arena)

    def _is_sent(self, number: int) -> bool:
        return self._sent[0] >= number

    def _may_begin(self, ticket: WorkerTicket) -> bool:
        is_sent = self._is_sent(ticket.ticket.first_number)
        return is_sent and all(self._done[worker] >= number for worker, number in ticket.before.items())

    def _wait(self, is_so: Callable[[], bool], first_number: int, advance: Callable[[], bool]) -> bool:
        """Wait until it is so: True; or until the ticket that begins with this number has failed: False.
        `advance` does a little meanwhile, or returns False."""
        failed = self._failed
        if is_so():
            return failed[0] < first_number
        began_ns = time.perf_counter_ns()
        while failed[0] < first_number:
            if is_so():
                return failed[0] < first_number
            if advance():
                continue
            waited_ns = time.perf_counter_ns() - began_ns
            if waited_ns > _YIELD_NS:
                time.sleep(_SLEEP_S)
            elif waited_ns > _SPIN_NS:
                os.sched_yield()
        return False


def _do_nothing() -> bool:
    return False


def _warm_up(group: FusedGroup, dtype: torch.dtype) -> None:
    """Have the libraries do what they do at their first product, for a base of this size."""
    layout = AdapterLayout.build((group,), 1, {(0, module): _WARM_UP_RANK for module in group.modules})
    arena = torch.zeros(layout.num_elements, dtype=dtype)
    x = torch.zeros(_WARM_UP_TOKENS, group.in_width, dtype=dtype)
    out = torch.empty(_WARM_UP_TOKENS, sum(group.out_widths), dtype=dtype)
    add_group(x, out, arena, layout.table[0, 0], group)
