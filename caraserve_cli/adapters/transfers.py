"""All transfers to one device that are not over, in the order in which they were begun.

Copies to the device and work that reads or moves what lies there are kept apart: a copy comes after all that
may still read the place it writes to, and who moves or reads an adapter comes after its copies.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from caraserve_cli.adapters.copy_lane import CopyLane, Wait
from caraserve_cli.adapters.layer_order import LayerOrder
from caraserve_cli.adapters.transfer import LayerCopy, Stall, Transfer

# What a link carries before any transfer has told: a pinned copy to an H200 over PCIe 5.0 x16, hardware.md.
_FIRST_BYTES_PER_MS = 55e6
# Transfers of fewer bytes say more of the host than of the link.
_TELLING_BYTES = 2**20
# How long a caller that waits for copies sleeps before it looks again.
_LOOK_AGAIN_S = 0.0001
# Weight of the newest transfer in the estimate of the link's speed. Chosen, not measured.
_NEWEST = 0.25


class Transfers:
    """The transfers of one lane.

    Args:
        lane: to the device.
        num_layers: of the base.

    Attributes:
        opened_bytes: of all transfers so far.
    """

    def __init__(self, lane: CopyLane, num_layers: int) -> None:
        self._lane, self._num_layers = lane, num_layers
        self._under_way: list[tuple[Transfer, Callable[[], None]]] = []
        self._is_stale = False
        self._waits: list[Wait] = []  # for transfers that are over, see `take_stall`
        self.opened_bytes = 0
        self._copied_ms = 0.0
        # How fast the link was, and which one that was: its emulated rate, None for the machine's own.
        self._bytes_per_ms: float | None = None
        self._measured_link: float | None = None

    @property
    def are_over(self) -> bool:
        """Whether nothing is under way, as far as `settle` has seen."""
        return not self._under_way

    @property
    def backlog_ms(self) -> float:
        """How long the transfers under way will still take, at the speed of those before, up to the group of
        layers that is on its way."""
        left_bytes = sum(transfer.left_bytes for transfer, _ in self._under_way)
        return left_bytes / (self.bytes_per_ms or _FIRST_BYTES_PER_MS)

    @property
    def bytes_per_ms(self) -> float | None:
        """How fast the transfers over this link were lately; None before any has told."""
        link = None if self._lane.link is None else self._lane.link.bytes_per_s
        if link != self._measured_link:
            self._bytes_per_ms, self._measured_link = None, link
        return self._bytes_per_ms

    def mark_stale(self) -> None:
        """What work queued so far on the current stream reads may be overwritten by copies from here on."""
        self._is_stale = True

    def open(
        self, copies: Sequence[LayerCopy], order: LayerOrder, on_arrival: Callable[[], None] = lambda: None
    ) -> Transfer:
        """A transfer of `copies`, which begins when it is told to, or waited for.

        Args:
            copies: what is copied; the sources must keep their content until `on_arrival`.
            order: of the layers.
            on_arrival: called, once, by the first `settle` after all has come.
        """
        if self._is_stale:
            self._lane.come_after_current_work()
            self._is_stale = False
        transfer = Transfer(self._lane, copies, order.groups(self._num_layers))
        self._under_way.append((transfer, on_arrival))
        self.opened_bytes += transfer.num_bytes
        return transfer

    def begin(self) -> None:
        """Queue all copies that are not queued yet."""
        for transfer, _ in self._under_way:
            transfer.begin()

    def wait(self) -> None:
        """What is queued on the current stream from here on comes after all copies of all transfers."""
        for transfer, _ in self._under_way:
            transfer.wait()

    def settle(self) -> None:
        """Let go of what has arrived."""
        while self._under_way and self._under_way[0][0].has_arrived:
            transfer, on_arrival = self._under_way.pop(0)
            took_ms = transfer.took_ms
            self._copied_ms += took_ms
            self._waits += transfer.take_waits()
            if transfer.num_bytes >= _TELLING_BYTES and took_ms > 0:
                newest = transfer.num_bytes / took_ms
                before = self.bytes_per_ms or newest
                self._bytes_per_ms = before + _NEWEST * (newest - before)
            on_arrival()

    def block(self, most_s: float) -> None:
        """The caller waits until the oldest transfer, if there is one, has arrived, at most `most_s`."""
        self.begin()
        end_s = time.perf_counter() + most_s
        while self._under_way and not self._under_way[0][0].has_arrived and time.perf_counter() < end_s:
            time.sleep(_LOOK_AGAIN_S)
        self.settle()

    def take_stall(self) -> Stall:
        """For how long what was queued on the current stream, since this was last asked for, stands still
        until copies have come."""
        waits, self._waits = self._waits, []
        for transfer, _ in self._under_way:
            waits += transfer.take_waits()
        return Stall(tuple(waits))

    def take_copied_ms(self) -> float:
        """Milliseconds of copying by the transfers that were settled since this was last asked for."""
        taken, self._copied_ms = self._copied_ms, 0.0
        return taken
