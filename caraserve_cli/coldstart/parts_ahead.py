"""The parts of a ticket that one worker computes, each made ready as far as there was time before its turn.

Ready is a part whose views are made and whose weights are in the cache. What is not ready in time costs time
and nothing else. Knows no signals: who waits for them calls `advance` between its looks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from caraserve_cli.coldstart.cpu_lora import (
    GroupProducts,
    choose_compute_dtype,
    own_columns,
    stacked_ranks,
    weight_extents,
)
from caraserve_cli.coldstart.exchange_memory import ExchangeMemory
from caraserve_cli.coldstart.own_parts import OwnPart
from caraserve_cli.coldstart.read_ahead import ReadAhead
from caraserve_cli.coldstart.ticket_memory import WorkerTicket
from caraserve_kernels.lora_layout import RANKS, FusedGroup

# Parts whose views are made before their turn: those of a few layers. Chosen, not measured.
_MOST_PREPARED = 4


class _Steps(NamedTuple):
    """What computes a part: its slice of the LoRA rows; then, when its peers have done so, of the columns."""

    shrinks: Sequence[Callable[[], object]]
    expands: Sequence[Callable[[], object]]


class PartsAhead:
    """A worker's parts of one ticket.

    Args:
        ticket: it stays in its place for as long as this object is used.
        parts: of the worker, in the order of their ops.
        groups: of a layer, in the order of the tables.
        exchange: x and the result, and h between the workers.
        read_ahead: for this ticket alone.
        arena: flat, the run's dtype.
    """

    def __init__(
        self,
        ticket: WorkerTicket,
        parts: Iterator[OwnPart],
        groups: Sequence[FusedGroup],
        exchange: ExchangeMemory,
        read_ahead: ReadAhead,
        arena: Tensor,
    ) -> None:
        self._ticket, self._parts, self._groups = ticket, parts, groups
        self._exchange, self._read_ahead, self._arena = exchange, read_ahead, arena
        self._compute_dtype = choose_compute_dtype(arena.dtype)
        # Parts that are found and not computed yet; the first ones of them are prepared.
        self._found: deque[OwnPart] = deque()
        self._prepared: deque[_Steps] = deque()
        # Of each op, the ranks of the adapter that has most: so wide are the rows of h.
        self._h_ranks: list[int] = ticket.entries[..., RANKS].sum(axis=-1).max(axis=0, initial=0).tolist()
        # The same rows of x and of the result are needed in every layer.
        self._rows: dict[tuple[int, int, int], tuple[Tensor, Tensor]] = {}

    def next_part(self) -> OwnPart | None:
        """The part whose turn it is; None if there is none any more."""
        return self._found[0] if self._found or self._find() else None

    def shrink_next(self) -> None:
        """Compute the LoRA rows of the part whose turn it is; there must be one."""
        if not self._prepared:
            self._prepare()
        for step in self._prepared[0].shrinks:
            step()

    def expand_next(self) -> None:
        """Compute the result of the part whose LoRA rows have just been computed, by its peers too. The next
        one's turn comes."""
        for step in self._prepared.popleft().expands:
            step()
        self._found.popleft()
        self._read_ahead.finish()

    def advance(self) -> bool:
        """Do a little of what will be needed, the most urgent first; False if all is done that can be."""
        if not self._prepared and (self._found or self._find()):
            self._prepare()
            return True
        if self._read_ahead.step():
            return True
        if len(self._prepared) < min(_MOST_PREPARED, len(self._found)):
            self._prepare()
            return True
        return self._find() or self._read_ahead.touch_next()

    def _find(self) -> bool:
        """Find one part more; False if there is none."""
        part = next(self._parts, None)
        if part is None:
            return False
        self._found.append(part)
        group, entries = self._groups[part.group], self._ticket.entries
        self._read_ahead.add(
            extent
            for segment, _, _ in part.segments
            for extent in weight_extents(entries[segment, part.op].tolist(), group, part.modules, part.slice)
        )
        return True

    def _prepare(self) -> None:
        """Make the views of the first part that has none: products for rows of adapters, zeros for the rows
        between."""
        part = self._found[len(self._prepared)]
        shrinks: list[Callable[[], object]] = []
        expands: list[Callable[[], object]] = []
        row = part.rows.start
        for segment, first, end in part.segments:
            expands += self._zeros(part, row, first)
            products = self._products(part, segment, first, end)
            shrinks.append(products.shrink)
            expands.append(products.expand)
            row = end
        expands += self._zeros(part, row, part.rows.stop)
        self._prepared.append(_Steps(shrinks, expands))

    def _products(self, part: OwnPart, segment: int, first: int, end: int) -> GroupProducts:
        """Of the rows from `first` to before `end`, those of the adapter of this segment."""
        x, result = self._rows_of(part.group, first, end)
        entry = self._ticket.entries[segment, part.op].tolist()
        h = None
        if part.peers:
            ranks = stacked_ranks(entry, part.modules)
            h = self._exchange.h(self._ticket.num_rows, self._h_ranks[part.op], self._compute_dtype)
            h = h[first:end, ranks.start : ranks.stop]
        group, dtype = self._groups[part.group], self._compute_dtype
        return GroupProducts(x, result, self._arena, entry, group, part.modules, dtype, part.slice, h)

    def _zeros(self, part: OwnPart, first: int, end: int) -> list[Callable[[], object]]:
        """What writes zeros to the part's columns of these rows, which are no adapter's; maybe nothing."""
        if first == end:
            return []
        result = self._rows_of(part.group, first, end)[1]
        columns = own_columns(self._groups[part.group], part.modules, part.slice)
        return [result[:, own].zero_ for own in columns]

    def _rows_of(self, group_index: int, first: int, end: int) -> tuple[Tensor, Tensor]:
        """x [end - first, in_width] and result [end - first, sum of out_widths] of some rows."""
        key = (group_index, first, end)
        if key not in self._rows:
            group = self._groups[group_index]
            x, result = self._exchange.rows(self._ticket.num_rows, group.in_width, sum(group.out_widths))
            self._rows[key] = (x[first:end], result[first:end])
        return self._rows[key]
