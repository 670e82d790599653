"""Copies of adapters to the device pool, layer by layer, on a stream of their own.

All adapters of a step are copied together, the first layers of each before the next layers of any, and each
group of layers sets an event: so the step that needs them begins at once and waits, layer by layer, for what
it is about to read, while steps that need none of them go on. (Layer-wise loading as in the paper's section
3, for all cold adapters of a batch at once.)

On the CPU, where a copy is done when its call returns, there is no stream and nothing to wait for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Layers that are copied in one piece. A piece of a small adapter (rank 8 on q, k, v, o of Llama-2-7B: 2 MB)
# is then large enough for the link, and the first of 8 pieces is a small part of the whole. Chosen, not
# measured.
LAYERS_PER_COPY = 4


@dataclass(frozen=True, slots=True, eq=False)
class _Copy:
    adapter_slot: int
    target: Tensor
    source: Tensor
    layer_starts: Sequence[int]


class CopyTime:
    """What copies took, from the first to the last of them."""

    def __init__(self, first: torch.cuda.Event, last: torch.cuda.Event) -> None:
        self._first, self._last = first, last

    @property
    def ms(self) -> float:
        """Milliseconds; to be asked for when what waited for the copies has ended."""
        return float(self._first.elapsed_time(self._last))


class LayerCopies:
    """Copies queued, under way, and waited for.

    Args:
        device: of the targets.
        num_layers: of the base.
    """

    def __init__(self, device: torch.device, num_layers: int) -> None:
        self._num_groups = -(-num_layers // LAYERS_PER_COPY)
        self._stream = _new_stream(device)
        self._queued: list[_Copy] = []
        self._is_stale = False
        self._arrivals: list[torch.cuda.Event] = []
        self._num_waited = 0

    def queue(self, adapter_slot: int, target: Tensor, source: Tensor, layer_starts: Sequence[int]) -> None:
        """Have something of an adapter copied by the next `start`.

        Args:
            adapter_slot: the adapter's.
            target: [elements], on the device.
            source: [elements], pinned.
            layer_starts: element where each layer begins, and where the last one ends.
        """
        self._queued.append(_Copy(adapter_slot, target, source, layer_starts))

    def forget(self, adapter_slot: int) -> None:
        """Nobody wants what is queued for this slot any more."""
        self._queued = [copy for copy in self._queued if copy.adapter_slot != adapter_slot]

    def mark_stale(self) -> None:
        """What work queued so far on the current stream reads may be overwritten by copies from here on."""
        self._is_stale = True

    def start(self) -> CopyTime | None:
        """Begin all queued copies; the host does not wait. None where nothing is under way after that."""
        if not self._queued:
            return None
        copy_time = None
        if self._stream is None:
            self._copy_layers(0, self._num_groups)
        else:
            self.wait()
            if self._is_stale:
                self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
                self._is_stale = False
            with torch.cuda.stream(self._stream):
                copy_time = self._begin()
        self._queued = []
        return copy_time

    def _begin(self) -> CopyTime:
        first = _mark_now()
        self._arrivals, self._num_waited = [], 0
        for group in range(self._num_groups):
            self._copy_layers(group, group + 1)
            self._arrivals.append(_mark_now())
        return CopyTime(first, self._arrivals[-1])

    def _copy_layers(self, first_group: int, end_group: int) -> None:
        for copy in self._queued:
            num_layers = len(copy.layer_starts) - 1
            first = copy.layer_starts[min(first_group * LAYERS_PER_COPY, num_layers)]
            end = copy.layer_starts[min(end_group * LAYERS_PER_COPY, num_layers)]
            if first < end:
                copy.target[first:end].copy_(copy.source[first:end], non_blocking=True)

    def wait_for_layer(self, layer: int) -> None:
        """What is queued on the current stream from here on comes after this layer's arrival, and that of all
        before it."""
        self._wait_for_groups(layer // LAYERS_PER_COPY + 1)

    def wait(self) -> None:
        """What is queued on the current stream from here on comes after all copies that have begun."""
        self._wait_for_groups(self._num_groups)

    def _wait_for_groups(self, num_groups: int) -> None:
        while self._num_waited < min(num_groups, len(self._arrivals)):
            assert self._stream is not None
            torch.cuda.current_stream(self._stream.device).wait_event(self._arrivals[self._num_waited])
            self._num_waited += 1


def _mark_now() -> torch.cuda.Event:
    """A point of the current stream whose time is noted."""
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def _new_stream(device: torch.device) -> torch.cuda.Stream | None:
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
