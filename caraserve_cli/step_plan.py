"""What one step computes, and what is done to the adapters on the device before it: from the scheduler, which
plans it, to whoever executes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from caraserve_cli.core import ColdStart, Sequence


class AssistOutcome(Enum):
    """What came of the assistance by CPU workers that a plan asked for."""

    NONE = "none"  # the device computed all by itself
    IN_TIME = "in time"
    LATE = "late"  # some of it was missing: what the step computed of assisted chunks does not hold


@dataclass(frozen=True, slots=True)
class ScheduledChunk:
    """Tokens `start` to `start + num_tokens` of one sequence, to be computed in one step.

    `yields_token`: whether it ends at the sequence's last token, so that a next one is sampled. `cpu_layers`:
    leading layers whose LoRA part CPU workers compute. `lent_slot`: of the plan's loan of its adapter, which
    is not brought to the device, so that CPU workers compute all layers; None where it is.
    """

    sequence: Sequence
    start: int
    num_tokens: int
    yields_token: bool
    cpu_layers: int = 0
    lent_slot: int | None = None

    @property
    def adapter_slot(self) -> int | None:
        """Where its adapter is found, on the device or lent; None for the base alone."""
        return self.sequence.adapter_slot if self.lent_slot is None else self.lent_slot


class AdapterEviction(NamedTuple):
    """Forget what is in `adapter_slot`; its bytes of the device pool may be written over."""

    adapter_slot: int


class AdapterMove(NamedTuple):
    """Slide the bytes of `adapter_slot` to a lower address of the device pool.

    The two ranges may overlap: copy as memmove does, from the lowest address up.
    """

    adapter_slot: int
    from_offset_bytes: int
    to_offset_bytes: int
    num_bytes: int


class AdapterLoad(NamedTuple):
    """Bring `adapter` into `adapter_slot`, at `offset_bytes` of the device pool. `how`: what waits for it;
    the first `cpu_layers` layers are needed last; what `is_held` has a step wait for it that begins later,
    what `is_beside` one that is computed beside the others."""

    adapter: str
    adapter_slot: int
    offset_bytes: int
    how: ColdStart = ColdStart.STREAM
    cpu_layers: int = 0
    is_held: bool = False
    is_beside: bool = False


class AdapterLoan(NamedTuple):
    """Have CPU workers compute with `adapter` where it lies in host memory, in one step, which calls it
    `adapter_slot`: a number that no slot of the device pool has."""

    adapter: str
    adapter_slot: int


# What changes the device pool. A later one may undo an earlier one's place, so that their order counts.
PoolOp = AdapterEviction | AdapterMove | AdapterLoad


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What one step computes. `pool_ops` come before the chunks, one after the other; `beside` are chunks of
    a step of their own, which is computed beside this one and those after it; `loans` are the adapters that
    chunks of either are lent."""

    chunks: tuple[ScheduledChunk, ...]
    pool_ops: tuple[PoolOp, ...] = ()
    num_preempted: int = 0
    num_cached_tokens: int = 0
    beside: tuple[ScheduledChunk, ...] = ()
    loans: tuple[AdapterLoan, ...] = ()

    @property
    def num_tokens(self) -> int:
        return sum(chunk.num_tokens for chunk in self.chunks)

    @property
    def num_adapter_loads(self) -> int:
        return sum(isinstance(op, AdapterLoad) for op in self.pool_ops)
