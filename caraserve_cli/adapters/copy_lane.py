"""The way from the host to the device: copies are made one after the other, in the order in which they are
queued, beside whatever the device computes.

On a GPU a lane is a stream of its own. On the CPU, where a copy is done when its call returns, there is
nothing to wait for, unless the link is emulated: then what was copied counts as arrived when the link would
have brought it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor

from caraserve_kernels.link_clock import pace


@dataclass(frozen=True, slots=True, eq=False)
class EmulatedLink:
    """One direction of a slower link, for experiments: a serial queue.

    Attributes:
        clock: int64 [1] on the device, until when the link is taken, in nanoseconds; see `link_clock`.
        bytes_per_s: what it carries.
    """

    clock: Tensor
    bytes_per_s: float

    def carry(self, num_bytes: int) -> None:
        """What is queued on the current stream from here on comes after `num_bytes` more have gone over."""
        # What goes over in a second: `pace` refuses pieces of more than two.
        most_bytes = max(1, int(self.bytes_per_s))
        for first in range(0, max(1, num_bytes), most_bytes):
            pace(self.clock, min(most_bytes, num_bytes - first), self.bytes_per_s)

    def carry_rows(self, row_bytes: int, num_rows: Tensor) -> None:
        """The same for rows, as many as `num_rows` (int32 [1] on the device) says when their turn comes. They
        overtake what is carried piece by piece."""
        pace(self.clock, row_bytes, self.bytes_per_s, turn_bytes=None, num_rows=num_rows)


class Wait(Protocol):
    """That something waits for an arrival."""

    @property
    def stalled_ms(self) -> float:
        """How long what waits stands still; known when that goes on."""


class Arrival(Protocol):
    """The end of some copies."""

    @property
    def has_come(self) -> bool: ...

    def wait(self) -> Wait:
        """What is queued on the current stream from here on comes after it; on the CPU, the caller does."""

    @property
    def took_ms(self) -> float:
        """How long the link was busy with these copies; known when they have come."""

    def ms_since(self, first: Self) -> float:
        """From the beginning of the copies of `first`, of the same lane; known when these have come."""


class CopyLane(Protocol):
    """Where copies are queued.

    Attributes:
        link: what it is to seem; None for what it is. Only to be changed while nothing is under way.
    """

    link: EmulatedLink | None

    @property
    def waiter(self) -> int:
        """Who would wait, were an arrival waited for now: each stream of a GPU waits for itself."""

    def copy(self, pieces: Iterable[tuple[Tensor, Tensor]]) -> Arrival:
        """Queue copies, (target, source) each; they are made in this order, after all queued before."""

    def come_after_current_work(self) -> None:
        """Copies queued from here on come after what is queued on the current stream by now."""


def open_lane(device: torch.device, link: EmulatedLink | None = None) -> CopyLane:
    """The lane to a device."""
    return _StreamLane(device, link) if device.type == "cuda" else _HostLane(link)


@dataclass(frozen=True, slots=True, eq=False)
class _WaitOnStream:
    """From when who waits needs it to when it has come."""

    needed: torch.cuda.Event
    after: torch.cuda.Event

    @property
    def stalled_ms(self) -> float:
        # Below zero where it had come before it was needed.
        return max(0.0, float(self.needed.elapsed_time(self.after)))


@dataclass(frozen=True, slots=True, eq=False)
class _Events:
    """An arrival on a GPU: from before the first copy to after the last."""

    before: torch.cuda.Event
    after: torch.cuda.Event

    @property
    def has_come(self) -> bool:
        return bool(self.after.query())  # type: ignore[no-untyped-call]

    def wait(self) -> _WaitOnStream:
        needed = _mark_now()
        torch.cuda.current_stream().wait_event(self.after)
        return _WaitOnStream(needed, self.after)

    @property
    def took_ms(self) -> float:
        return self.ms_since(self)

    def ms_since(self, first: Self) -> float:
        return float(first.before.elapsed_time(self.after))


class _StreamLane:
    """A stream of the GPU."""

    def __init__(self, device: torch.device, link: EmulatedLink | None) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.link = link

    @property
    def waiter(self) -> int:
        return int(torch.cuda.current_stream(self._stream.device).cuda_stream)

    def copy(self, pieces: Iterable[tuple[Tensor, Tensor]]) -> Arrival:
        with torch.cuda.stream(self._stream):
            before = _mark_now()
            for target, source in pieces:
                target.copy_(source, non_blocking=True)
                if self.link is not None:
                    self.link.carry(source.nbytes)
            return _Events(before, _mark_now())

    def come_after_current_work(self) -> None:
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))


def _mark_now() -> torch.cuda.Event:
    """A point of the current stream whose time is noted."""
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


class _WaitOfCaller(NamedTuple):
    """That is over when it is told of."""

    stalled_ms: float


@dataclass(frozen=True, slots=True)
class _Moment:
    """An arrival on the CPU: from one time of its clock to another."""

    from_ns: int
    at_ns: int

    @property
    def has_come(self) -> bool:
        return time.perf_counter_ns() >= self.at_ns

    def wait(self) -> _WaitOfCaller:
        now_ns = time.perf_counter_ns()
        if now_ns >= self.at_ns:
            return _WaitOfCaller(0.0)
        time.sleep((self.at_ns - now_ns) / 1e9)
        return _WaitOfCaller((time.perf_counter_ns() - now_ns) / 1e6)

    @property
    def took_ms(self) -> float:
        return self.ms_since(self)

    def ms_since(self, first: Self) -> float:
        return (self.at_ns - first.from_ns) / 1e6


class _HostLane:
    """Copies within the host's memory."""

    waiter = 0  # the caller

    def __init__(self, link: EmulatedLink | None) -> None:
        self.link = link

    def copy(self, pieces: Iterable[tuple[Tensor, Tensor]]) -> Arrival:
        num_bytes = 0
        for target, source in pieces:
            target.copy_(source)
            num_bytes += source.nbytes
        now_ns = time.perf_counter_ns()
        if self.link is None:
            return _Moment(now_ns, now_ns)
        begin_ns = max(now_ns, int(self.link.clock))
        end_ns = begin_ns + int(num_bytes / self.link.bytes_per_s * 1e9)
        self.link.clock.fill_(end_ns)
        return _Moment(begin_ns, end_ns)

    def come_after_current_work(self) -> None:
        """It always does."""
