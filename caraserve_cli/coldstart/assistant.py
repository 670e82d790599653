"""The CPU workers of a replica, as its runner sees them: a step's adapters go in, its assistance comes out
(the paper's section 1).

Nothing here waits for a worker, or for the device: activations and results go by signals in shared memory
(`caraserve_kernels.host_exchange`). Workers that do not answer are replaced by the pool; their step is told
apart by `Assistance.was_in_time`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from caraserve_cli.adapters.weights import AdapterWeights
from caraserve_cli.coldstart.assisted_ops import AssistedOps
from caraserve_cli.coldstart.exchange_memory import ExchangeMemory
from caraserve_cli.coldstart.worker_pool import AssistRows, NoFreeWorkerError, Ticket, WorkerPool
from caraserve_cli.step_plan import AssistOutcome
from caraserve_kernels.host_exchange import MAX_LATE_MS, HostExchange
from caraserve_kernels.lora_layout import RANKS

# A result that comes later than this after it was due is given up (issue 4: 20 ms).
LATE_MS = 20.0
# What a worker computes at least, operations a second; when a result is due is reckoned with it. A core with
# AMX does a hundred times as much (hardware.md), one of two busy cores of a CI machine several times.
_SLOWEST_FLOPS = 1e9


class AssistedSegment(NamedTuple):
    """Neighbouring tokens of the batch, counted from its first, that use one adapter."""

    adapter_slot: int
    first_token: int
    num_tokens: int


class Assistance:
    """What the workers do for one step.

    Args:
        exchange: the memory shared with the workers.
        ticket: of the step; None where there was no worker, and no device either, to compute what it says.
        cpu_layers: leading layers that the workers compute.
        tell_device: queues what tells the device of the step's ops; to be called once, before they are queued
            and after whatever must not send anything.
    """

    def __init__(
        self, exchange: HostExchange, ticket: Ticket | None, cpu_layers: int, tell_device: Callable[[], None]
    ) -> None:
        self._exchange, self._ticket = exchange, ticket
        self.cpu_layers, self.tell_device = cpu_layers, tell_device

    @property
    def num_ops(self) -> int:
        """That the workers were given: none where the adapters change nothing in those layers."""
        return 0 if self._ticket is None else self._ticket.num_ops

    @property
    def outcome(self) -> AssistOutcome:
        """To be asked when the step has ended."""
        if self._ticket is not None and not self._ticket.num_ops:
            return AssistOutcome.NONE
        return AssistOutcome.IN_TIME if self.was_in_time else AssistOutcome.LATE

    @property
    def was_in_time(self) -> bool:
        """Whether every result came in time; to be asked when the step has ended. A later step that failed
        may make this one look failed, never the other way round."""
        return self._ticket is not None and int(self._exchange.failed) < self._ticket.first_number

    def abandon(self) -> None:
        """The step will not be computed: what the workers have of it is void."""
        if self._ticket is not None and self._ticket.num_ops:
            self._exchange.failed.fill_(self._ticket.last_number)


def assist_outcome(assistance: Assistance | None) -> AssistOutcome:
    """Of a step; to be asked when it has ended."""
    return AssistOutcome.NONE if assistance is None else assistance.outcome


class Assistant:
    """The workers, what they share with the device, and the adapters that they can compute with.

    Args:
        memory: for activations and results.
        pool: the workers; both are closed with the assistant.
        device: of the base.
        late_ms: how late a result may be before it is given up.

    Attributes:
        ops: what a device queues of a step's ops.
    """

    def __init__(
        self, memory: ExchangeMemory, pool: WorkerPool, device: torch.device, late_ms: float = LATE_MS
    ) -> None:
        self._memory, self._pool, self._late_ms = memory, pool, late_ms
        self.ops = AssistedOps(memory.exchange, memory.max_rows, device)
        self._tables: dict[int, NDArray[np.int64]] = {}
        self.num_lost_workers = 0
        # What to call when all tickets up to one have ended, in their order.
        self._when_over: deque[tuple[int, Callable[[], None]]] = deque()

    @property
    def num_workers(self) -> int:
        """Workers that can be given work."""
        return self._pool.num_workers

    @property
    def max_tokens(self) -> int:
        """That can be assisted in one step."""
        return self._memory.max_rows

    def note(self, adapter_slot: int, weights: AdapterWeights) -> None:
        """A slot holds this adapter from now on, or it is lent by this number."""
        self._tables.pop(adapter_slot, None)
        packed = weights.packed
        if packed is not None and packed.arena_offset_bytes is not None:
            first = packed.arena_offset_bytes // packed.blob.itemsize
            self._tables[adapter_slot] = packed.layout.placed(first)

    def begin(
        self, segments: Sequence[AssistedSegment], num_tokens: int, cpu_layers: int
    ) -> Assistance | None:
        """Hand a step's assisted tokens to the workers; None if they cannot compute them, in which case the
        device does.

        Args:
            segments: of the tokens, all of adapters that were noted.
            num_tokens: in all, the first of the batch.
            cpu_layers: leading layers that the workers compute.
        """
        known = all(segment.adapter_slot in self._tables for segment in segments)
        if not known or num_tokens > self.max_tokens:
            return None
        rows = [
            AssistRows(segment.first_token, segment.num_tokens, self._tables[segment.adapter_slot])
            for segment in segments
        ]
        ranks = np.max([row.table[:cpu_layers, :, RANKS].sum(axis=-1) for row in rows], axis=0)
        ops = [(int(layer), int(group)) for layer, group in np.argwhere(ranks)]
        try:
            ticket = self._pool.submit(rows, ops, num_tokens)
        except NoFreeWorkerError:
            return None  # since the step was planned one was lost, or seen to be late with an earlier one
        largest_rank = int(ranks.max(initial=0))
        due_ms = self._memory.op_flops(num_tokens, largest_rank) / _SLOWEST_FLOPS * 1000.0
        late_ms = min(self._late_ms + due_ms / max(1, ticket.workers.bit_count()), MAX_LATE_MS)
        tell_device = partial(self.ops.write, ticket, ops, rows[0].table.shape[0], num_tokens, late_ms)
        return Assistance(self._memory.exchange, ticket, cpu_layers, tell_device)

    def miss(self, cpu_layers: int) -> Assistance:
        """The assistance of a step that `begin` refused and the device cannot compute, for it has not all of
        the adapters: nothing is added to the assisted tokens, and it was not in time."""
        return Assistance(self._memory.exchange, None, cpu_layers, tell_device=self.ops.clear)

    def call_when_over(self, call: Callable[[], None]) -> None:
        """Have something called, by `settle`, once no worker reads any more what it was given so far."""
        self._when_over.append((self._pool.last_number, call))
        self._call_due()

    def settle(self) -> None:
        """Replace workers that are lost, and call what is due; to be called between any two steps. Who has no
        worker is given no step to assist: that it gets one again must not wait for such a step."""
        self.num_lost_workers += self._pool.poll()
        self._call_due()

    def close(self) -> None:
        """End the workers."""
        self._pool.close()
        self._call_due()
        self._memory.close()

    def _call_due(self) -> None:
        while self._when_over and self._pool.is_over(self._when_over[0][0]):
            self._when_over.popleft()[1]()
