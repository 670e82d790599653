"""Copies of adapters to the device pool, layer by layer, on a stream of their own.

All adapters of a step are copied together, the first layers of each before the next layers of any, and each
group of layers sets an event: so the step that needs them begins at once and waits, layer by layer, for what
it is about to read. The step before it, if still under way, goes on beside the copies. (Layer-wise loading as
in the paper's section 1, for all cold adapters of a batch at once.) Later groups are queued while earlier
layers are launched: 64 adapters in 9 groups are 576 copies, each of which costs the host some microseconds.

On the CPU, where a copy is done when its call returns, there is no stream and nothing to wait for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Layers that are copied in one piece. A piece of a small adapter (rank 8 on q, k, v, o of Llama-2-7B: 2 MB)
# is then large enough for the link. The very first layer is a group by itself: all wait for it. H200, a step
# of 64 prompts of 128 tokens with 64 cold adapters (4 GB): 189 ms, 175 ms with all of them resident, 250 ms
# with all copied before the step.
LAYERS_PER_COPY = 4
# Groups that are queued ahead of the one that is waited for. Chosen, not measured.
_GROUPS_AHEAD = 2


@dataclass(frozen=True, slots=True, eq=False)
class _Copy:
    target: Tensor
    source: Tensor
    layer_starts: Sequence[int]


class CopyTime:
    """What copies took; to be asked for when what waited for them has ended."""

    def __init__(self) -> None:
        self._groups: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def add(self, first: torch.cuda.Event, last: torch.cuda.Event) -> None:
        """A group of copies, from before its first to after its last."""
        self._groups.append((first, last))

    @property
    def ms(self) -> float:
        """Milliseconds of copying, without the gaps in which nothing was queued."""
        return sum(float(first.elapsed_time(last)) for first, last in self._groups)


class LayerCopies:
    """Copies queued, under way, and waited for.

    Args:
        device: of the targets.
        num_layers: of the base.
    """

    def __init__(self, device: torch.device, num_layers: int) -> None:
        ends = [1, *range(LAYERS_PER_COPY, num_layers, LAYERS_PER_COPY), num_layers]
        self._group_ends = tuple(dict.fromkeys(ends))  # one layer, or four, are in one group
        self._stream = _new_stream(device)
        self._queued: list[_Copy] = []
        self._is_stale = False
        self._under_way: list[_Copy] = []
        self._arrivals: list[torch.cuda.Event] = []
        self._time = CopyTime()
        self._num_begun = self._num_waited = len(self._group_ends)

    def queue(self, target: Tensor, source: Tensor, layer_starts: Sequence[int]) -> None:
        """Have something of an adapter copied by the next `start`.

        Args:
            target: [elements], on the device.
            source: [elements], pinned.
            layer_starts: element where each layer begins, and where the last one ends.
        """
        self._queued.append(_Copy(target, source, layer_starts))

    def mark_stale(self) -> None:
        """What work queued so far on the current stream reads may be overwritten by copies from here on."""
        self._is_stale = True

    def start(self) -> None:
        """Begin all queued copies; the host does not wait. `wait` must follow, once the layers are launched;
        what was started before and not waited for is waited for now."""
        if not self._queued:
            return
        self.wait()
        self._under_way, self._queued = self._queued, []
        self._arrivals = []
        self._num_begun = self._num_waited = 0
        if self._stream is None:
            self.wait()
            return
        if self._is_stale:
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
            self._is_stale = False
        self._begin(_GROUPS_AHEAD)

    def take_time(self) -> CopyTime:
        """The time of all copies begun since this was last asked for. `wait` must have been called."""
        taken, self._time = self._time, CopyTime()
        return taken

    def wait_for_layer(self, layer: int) -> None:
        """What is queued on the current stream from here on comes after this layer's arrival, and that of all
        before it."""
        while self._num_waited < len(self._group_ends) and (
            not self._num_waited or layer >= self._group_ends[self._num_waited - 1]
        ):
            self._wait_for_group()

    def wait(self) -> None:
        """What is queued on the current stream from here on comes after all copies that have been started."""
        while self._num_waited < len(self._group_ends):
            self._wait_for_group()

    def _wait_for_group(self) -> None:
        self._begin(self._num_waited + 1 + _GROUPS_AHEAD)
        if self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_event(self._arrivals[self._num_waited])
        self._num_waited += 1

    def _begin(self, num_groups: int) -> None:
        """Queue the copies of the first `num_groups` groups on the stream, as far as they are not yet."""
        while self._num_begun < min(num_groups, len(self._group_ends)):
            first = self._group_ends[self._num_begun - 1] if self._num_begun else 0
            end = self._group_ends[self._num_begun]
            if self._stream is None:
                self._copy_layers(first, end)
            else:
                with torch.cuda.stream(self._stream):
                    before = _mark_now()
                    self._copy_layers(first, end)
                    self._arrivals.append(_mark_now())
                self._time.add(before, self._arrivals[-1])
            self._num_begun += 1
        if self._num_begun == len(self._group_ends):
            self._under_way = []  # the allocator of pinned memory keeps what a copy still reads

    def _copy_layers(self, first_layer: int, end_layer: int) -> None:
        for copy in self._under_way:
            first, end = copy.layer_starts[first_layer], copy.layer_starts[end_layer]
            if first < end:
                copy.target[first:end].copy_(copy.source[first:end], non_blocking=True)


def _mark_now() -> torch.cuda.Event:
    """A point of the current stream whose time is noted."""
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def _new_stream(device: torch.device) -> torch.cuda.Stream | None:
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
