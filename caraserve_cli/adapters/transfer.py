"""Adapters on their way to the device, layer by layer.

All adapters of a transfer are copied together, the first layers of each before the next layers of any: so the
step that needs them begins at once and waits, layer by layer, for what it is about to read (layer-wise
loading as in the paper's section 1, for all cold adapters of a batch at once). Later groups of layers are
queued while earlier layers are launched: 64 adapters in 9 groups are 576 copies, each of which costs the host
about 10 µs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile

from torch import Tensor

from caraserve_cli.adapters.copy_lane import Arrival, CopyLane, Wait
from caraserve_cli.adapters.layer_order import LayerGroup

# Groups that are queued ahead of the one that is waited for: with none the link runs dry, with many the first
# layer of many adapters is launched late. Chosen, not measured.
_GROUPS_AHEAD = 1


@dataclass(frozen=True, slots=True, eq=False)
class LayerCopy:
    """What is to be copied of one adapter.

    Attributes:
        target: [elements], on the device.
        source: [elements], pinned.
        layer_starts: element where each layer begins, and where the last one ends; None for what no layer
            can do without, which goes before all layers.
    """

    target: Tensor
    source: Tensor
    layer_starts: Sequence[int] | None = None


@dataclass(frozen=True, slots=True)
class Stall:
    """What a piece of work queued on the device waits for, in this order."""

    waits: tuple[Wait, ...] = ()

    @property
    def ms(self) -> float:
        """How long that work stood still; known when it has ended."""
        return sum(wait.stalled_ms for wait in self.waits)


class Transfer:
    """Copies begun together, under way, and waited for.

    Args:
        lane: where they are queued.
        copies: what is copied.
        groups: the base's layers in the order of copying; each layer is in one group.

    Attributes:
        num_bytes: of all copies.
    """

    def __init__(self, lane: CopyLane, copies: Sequence[LayerCopy], groups: Sequence[LayerGroup]) -> None:
        self._lane, self._copies, self._groups = lane, copies, groups
        self._group_of = {
            layer: index for index, (first, end) in enumerate(groups) for layer in range(first, end)
        }
        self._arrivals: list[Arrival] = []
        self._num_waited: dict[int, int] = {}  # by each waiter of the lane, groups
        self._waits: list[Wait] = []
        self.num_bytes = sum(copy.source.nbytes for copy in copies)

    @property
    def has_arrived(self) -> bool:
        """Whether all of it is on the device."""
        return len(self._arrivals) == len(self._groups) and self._arrivals[-1].has_come

    @property
    def left_bytes(self) -> int:
        """Of the groups of layers that have not arrived."""
        num_come = sum(1 for _ in takewhile(lambda arrival: arrival.has_come, self._arrivals))
        return sum(self._group_bytes[num_come:])

    @cached_property
    def _group_bytes(self) -> list[int]:
        """Of each group."""
        group_bytes = [
            sum(
                (copy.layer_starts[end] - copy.layer_starts[first]) * copy.source.itemsize
                for copy in self._copies
                if copy.layer_starts is not None
            )
            for first, end in self._groups
        ]
        group_bytes[0] += sum(copy.source.nbytes for copy in self._copies if copy.layer_starts is None)
        return group_bytes

    @property
    def took_ms(self) -> float:
        """Milliseconds of copying, without the gaps in which nothing was queued; known when all has come."""
        return sum(arrival.took_ms for arrival in self._arrivals)

    @property
    def lasted_ms(self) -> float:
        """From when its first copy began to when all had come, the gaps included; known then."""
        return self._arrivals[-1].ms_since(self._arrivals[0])

    def take_waits(self) -> list[Wait]:
        """The waits for it since this was last asked."""
        taken, self._waits = self._waits, []
        return taken

    def begin(self, num_groups: int | None = None) -> None:
        """Queue the copies of the first groups, all by default, as far as they are not yet."""
        end = len(self._groups) if num_groups is None else min(num_groups, len(self._groups))
        while len(self._arrivals) < end:
            self._arrivals.append(self._lane.copy(self._pieces(len(self._arrivals))))

    def wait_for_layers(self, layers: Iterable[int]) -> None:
        """What is queued on the current stream from here on comes after the arrival of these layers."""
        self._wait_for_group(max(self._group_of[layer] for layer in layers))

    def wait(self) -> None:
        """What is queued on the current stream from here on comes after all of it."""
        self._wait_for_group(len(self._groups) - 1)

    def _wait_for_group(self, index: int) -> None:
        """And so for those before it: copies are made in order."""
        waiter = self._lane.waiter
        if index < self._num_waited.get(waiter, 0):
            return
        self.begin(index + 1 + _GROUPS_AHEAD)
        self._waits.append(self._arrivals[index].wait())
        self._num_waited[waiter] = index + 1

    def _pieces(self, index: int) -> Iterator[tuple[Tensor, Tensor]]:
        first_layer, end_layer = self._groups[index]
        if index == 0:
            yield from ((copy.target, copy.source) for copy in self._copies if copy.layer_starts is None)
        for copy in self._copies:
            if copy.layer_starts is not None:
                piece = slice(copy.layer_starts[first_layer], copy.layer_starts[end_layer])
                if piece.start < piece.stop:
                    yield copy.target[piece], copy.source[piece]
