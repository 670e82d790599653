"""The ops of a step that CPU workers assist, as the device queues them: rows out, results back.

What changes from step to step lies in words in the device's memory, written before the step
(`caraserve_kernels.host_exchange`). What is queued, and captured by CUDA graphs, is the same in every step of
a size, and does nothing for ops that the step's words have no number for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from caraserve_cli.adapters.copy_lane import EmulatedLink
from caraserve_cli.coldstart.ticket_memory import Ticket
from caraserve_cli.core import FUSED_MODULES
from caraserve_kernels.host_exchange import OP_WORDS, HostExchange, add_rows, send_rows, write_ops
from caraserve_kernels.host_rows import HostWords

# The largest base has fewer; memory for words is taken for so many.
_MAX_LAYERS = 256


@dataclass(frozen=True, slots=True, eq=False)
class LinkWays:
    """A slower link for activations, for experiments: the way to the host, and the way back."""

    to_host: EmulatedLink
    to_device: EmulatedLink


class AssistedOps:
    """Implements `assisted_lora.StepAssistance`.

    Args:
        exchange: the memory shared with the workers.
        max_rows: that an op may have.
        device: of the base.

    Attributes:
        link: a slower one than the machine's, for experiments; None for none.
    """

    def __init__(self, exchange: HostExchange, max_rows: int, device: torch.device) -> None:
        self._exchange, self._max_rows = exchange, max_rows
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._words = torch.zeros(_MAX_LAYERS, len(FUSED_MODULES), OP_WORDS, dtype=torch.int32, device=device)
        self._written = HostWords(self._words.numel(), device)
        self.link: LinkWays | None = None

    @property
    def link_bytes_per_s(self) -> float | None:
        """What a graph that is captured now emulates; None for the machine's own link."""
        return None if self.link is None else self.link.to_host.bytes_per_s

    def write(
        self, ticket: Ticket, ops: Sequence[tuple[int, int]], num_layers: int, num_rows: int, late_ms: float
    ) -> None:
        """Queue: from here on the ops are those of a ticket.

        Args:
            ticket: their numbers, in the order of `ops`, and workers.
            ops: (layer, group) of each.
            num_layers: of the base; no later layer has ops.
            num_rows: that are assisted, the first of the batch.
            late_ms: how long the device waits for each result.

        Raises:
            ValueError: as `host_exchange.write_ops`.
        """
        words, num_groups = self._written.begin().zero_(), len(FUSED_MODULES)
        if ops:
            at = [layer * num_groups + group for layer, group in ops]
            flat = words.view(-1, OP_WORDS).numpy()
            write_ops(flat, at, num_rows, ticket.first_number, ticket.workers, late_ms)
        self._written.read_to(self._words[:num_layers].view(1, -1))

    def clear(self) -> None:
        """Queue: from here on there are no ops; what is computed for a capture has no effect on anyone."""
        self._words.zero_()

    def send(self, layer: int, group: int, x: Tensor) -> None:
        """See `StepAssistance`."""
        op = self._words[layer, group]
        if self._stream is None:
            self._send(x, op)
            return
        # Beside the base's product. `x` lives until the result is there, which comes after it was sent.
        self._stream.wait_stream(torch.cuda.current_stream(x.device))
        with torch.cuda.stream(self._stream):
            self._send(x, op)

    def _send(self, x: Tensor, op: Tensor) -> None:
        if self.link is not None:
            self.link.to_host.carry_rows(x.shape[1] * x.itemsize, op[1:2])
        send_rows(x[: self._max_rows], self._exchange, op)

    def receive(self, layer: int, group: int, y: Tensor) -> None:
        """See `StepAssistance`."""
        op = self._words[layer, group]
        if self._stream is not None:
            # They have been sent, or no result would come; a graph has no end before all that was begun in
            # it has ended.
            torch.cuda.current_stream(y.device).wait_stream(self._stream)
        add_rows(y[: self._max_rows], self._exchange, op)
        if self.link is not None:
            self.link.to_device.carry_rows(y.shape[1] * y.itemsize, op[1:2])
