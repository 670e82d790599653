"""The CPU workers of a replica: who is there, who is given which ops, and who has to be replaced.

Nothing here waits for a worker once the pool is made, and none of their deaths is an error: a ticket that a
dead worker had is late, which is for the other end of the exchange to notice; the index gets a new process;
without any worker `num_workers` is 0. Knows no devices and no strategies.

A ticket has as many workers as the ops of a layer have parts (`own_parts`), if so many are free. In CaraServe
they are ceil(tokens / tokens_per_worker), each reading the weights of all modules.
"""

from __future__ import annotations

import select
import time
from collections.abc import Sequence

import torch

from caraserve_cli.coldstart.exchange_memory import ExchangeMemory
from caraserve_cli.coldstart.nursery_process import NurseryProcess
from caraserve_cli.coldstart.own_parts import count_workers
from caraserve_cli.coldstart.ticket_memory import NUM_PLACES, AssistRows, Ticket, TicketMemory
from caraserve_cli.coldstart.worker import WorkerSpec
from caraserve_cli.coldstart.worker_seat import GivenTicket, WorkerSeat
from caraserve_cli.errors import InputError
from caraserve_kernels.host_exchange import MAX_OP_NUMBER, MAX_WORKERS
from caraserve_kernels.lora_layout import FusedGroup

__all__ = ["AssistRows", "NoFreeWorkerError", "Ticket", "WorkerPool"]

# The largest base has fewer layers; memory that no ticket touches is not taken.
_MAX_LAYERS = 256
# A worker that has not ended a failed ticket after so long is ended itself. It looks after every op whether
# the ticket has failed. At 0.1 s, on two cores with two other programs that never rest, workers that were
# only slow were ended, 3 in 100 tickets.
_LATE_S = 0.5
# Importing torch takes 2 to 4 seconds, from a cold disk a minute.
_START_S = 120.0
# A worker that is not ready after so long, once the nursery forks, is ended: it is stopped. Else it is there
# in milliseconds. Chosen, not measured.
_READY_S = 20.0


class NoFreeWorkerError(ValueError):
    """No worker can be given work now."""


class WorkerPool:
    """Starts the workers and waits until they are ready.

    Args:
        groups: fused groups of a layer, in the order of the tables.
        arena_fd: memfd of the adapters; it stays the caller's, as does the exchange.
        arena_bytes: its size.
        exchange_memory: what the workers read x from and write results to.
        dtype: of the run.
        cores: one for each worker, at most MAX_WORKERS.
        tokens_per_worker: from which another worker computes further rows of a module.

    Raises:
        InputError: no worker starts.
    """

    def __init__(
        self,
        groups: Sequence[FusedGroup],
        *,
        arena_fd: int,
        arena_bytes: int,
        exchange_memory: ExchangeMemory,
        dtype: torch.dtype,
        cores: Sequence[int],
        tokens_per_worker: int,
    ) -> None:
        if not 0 < len(cores) <= MAX_WORKERS or tokens_per_worker < 1:
            raise ValueError(f"{len(cores)} workers of at least {tokens_per_worker} tokens")
        if dtype != exchange_memory.layout.dtype:
            raise ValueError(f"the run is in {dtype}, the exchange in {exchange_memory.layout.dtype}")
        self._exchange, self._tokens_per_worker = exchange_memory, tokens_per_worker
        self._next_number = 1
        self._seats = [WorkerSeat(index, core) for index, core in enumerate(cores)]
        self._is_closed = False
        self._forks_since_s: float | None = None
        max_rows = exchange_memory.max_rows
        self._tickets = TicketMemory.create(len(groups) * _MAX_LAYERS, max_rows)
        tickets = self._tickets
        spec = WorkerSpec(
            tuple(groups),
            exchange_memory.layout,
            arena_bytes,
            tickets.max_ops,
            tickets.max_segments,
            tokens_per_worker,
        )
        try:
            self._nursery = NurseryProcess(spec, (arena_fd, exchange_memory.fd, tickets.fd))
        except BaseException:
            self._tickets.close()
            raise
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    @property
    def num_workers(self) -> int:
        """Workers that can be given work; 0 too while one may still be writing what came too late, as no
        result would be taken from the others before it has ended."""
        self._look_at_words()
        if self._free_place() is None or any(seat.late_since_s is not None for seat in self._seats):
            return 0
        if self._next_number > MAX_OP_NUMBER - self._tickets.max_ops:
            return 0
        return sum(seat.is_ready for seat in self._seats)

    @property
    def last_number(self) -> int:
        """Of the ops that workers were given so far; 0 for none."""
        return self._next_number - 1

    def is_over(self, number: int) -> bool:
        """Whether no worker computes any more at an op with this number or a smaller one."""
        self._look_at_words()
        given = (each.ticket.first_number for seat in self._seats for each in seat.given)
        return all(first_number > number for first_number in given)

    def submit(self, rows: Sequence[AssistRows], ops: Sequence[tuple[int, int]], num_rows: int) -> Ticket:
        """Give a step to workers.

        Args:
            rows: of the adapters, in any order, none in two of them; rows of no adapter get zeros.
            ops: (layer, group index) of each op, in the order in which their x will be sent.
            num_rows: of x in each op.

        Returns:
            The ticket. Without ops it is for nobody.

        Raises:
            NoFreeWorkerError: none can be given work now, whatever `num_workers` said a moment ago.
            ValueError: the step does not fit the exchange.
        """
        if not 0 < num_rows <= self._exchange.max_rows:
            raise ValueError(f"{num_rows} rows; the exchange has room for {self._exchange.max_rows}")
        if not ops:
            return Ticket(self._next_number, 0, 0)
        num_free, place = self.num_workers, self._free_place()
        if num_free == 0 or place is None:
            raise NoFreeWorkerError("no worker can be given work; ask num_workers first")
        num_workers = count_workers(rows, ops, num_rows, num_free, self._tokens_per_worker)
        chosen = [seat for seat in self._seats if seat.is_ready][:num_workers]
        before = {seat.index: seat.given[-1].ticket.last_number for seat in self._seats if seat.given}
        ticket = Ticket(self._next_number, len(ops), sum(1 << seat.index for seat in chosen))
        in_order = sorted(rows, key=lambda row: row.first_row)
        self._tickets.write(place, ticket, num_rows, before, ops, in_order)
        self._next_number += len(ops)
        for seat in chosen:
            seat.give(GivenTicket(ticket, place))
        return ticket

    def poll(self) -> int:
        """Replace dead workers, and those that do not end what has failed, or do not become ready. Never
        blocks.

        Returns:
            How many have died since the last call.
        """
        if self._is_closed:
            return 0
        self._look_at_words()
        num_dead = self._listen(timeout_ms=0)
        if self._nursery.is_gone:
            num_dead += sum(seat.wakes is not None for seat in self._seats)
            for seat in self._seats:
                seat.leave()
            return num_dead
        self._end_stopped()
        for seat in self._seats:
            seat.start(self._nursery)
        return num_dead

    def close(self) -> None:
        """End the workers; they are gone when this returns. A second call does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        self._nursery.close()
        for seat in self._seats:
            seat.leave()
        self._tickets.close()

    def _start(self) -> None:
        until_s = time.monotonic() + _START_S
        while not all(seat.is_ready or seat.is_given_up for seat in self._seats):
            if self._nursery.is_gone or time.monotonic() > until_s:
                break
            self._end_stopped()
            for seat in self._seats:
                seat.start(self._nursery)
            self._listen(timeout_ms=50)
        if not any(seat.is_ready for seat in self._seats):
            raise InputError(
                "--cpu-workers: no CPU worker started, and what it said of that is above; "
                "use --cpu-workers 0 to run without"
            )

    def _end_stopped(self) -> None:
        """End workers that are late for too long, with a ticket that has failed or with being ready."""
        now_s = time.monotonic()
        for seat in self._seats:
            is_late = seat.late_since_s is not None and now_s - seat.late_since_s > _LATE_S
            if is_late or self._is_stopped_at_start(seat, now_s):
                self._nursery.end(seat.index)

    def _is_stopped_at_start(self, seat: WorkerSeat, now_s: float) -> bool:
        """Until the nursery has imported what workers need, orders wait for it."""
        if self._forks_since_s is None or seat.is_ready or seat.wakes is None:
            return False
        return now_s - max(seat.asked_s, self._forks_since_s) > _READY_S

    def _listen(self, timeout_ms: int) -> int:
        """Take what workers have sent; how many turn out to be dead."""
        poll = select.poll()
        seats = {seat.wakes.fileno(): seat for seat in self._seats if seat.wakes is not None}
        for fd in seats:
            poll.register(fd, select.POLLIN)
        num_dead = sum(not seats[fd].listen() for fd, _ in poll.poll(timeout_ms))
        if self._forks_since_s is None and any(seat.is_ready for seat in self._seats):
            self._forks_since_s = time.monotonic()
        return num_dead

    def _look_at_words(self) -> None:
        failed = self._exchange.failed[0]
        for seat in self._seats:
            if seat.given:
                seat.forget_ended(self._exchange.done[seat.index])
                seat.note_late(failed)

    def _free_place(self) -> int | None:
        taken = {given.place for seat in self._seats for given in seat.given}
        return next((place for place in range(NUM_PLACES) if place not in taken), None)
