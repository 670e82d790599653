"""Which parts of a ticket's ops a worker computes (`perf.op_cut` cuts them).

Only modules that some adapter of the ticket changes make a share; the columns of the others, zeros, go with
the module in front of them. The ops of a layer begin with different workers, so that with enough of them each
owns the same few modules of every layer, and knows early which weights it reads next.

Knows no tensors; reads tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from caraserve_cli.coldstart.ticket_memory import AssistRows, WorkerTicket
from caraserve_cli.perf.op_cut import OpCut
from caraserve_kernels.lora_layout import MAX_GROUP_MODULES, RANKS, FusedGroup


class OwnPart(NamedTuple):
    """What one worker computes of one op.

    Attributes:
        op: index in the ticket.
        group: index of the fused group.
        rows: of the step, of which the adapters' are `segments`.
        modules: of the group.
        segments: (index of the adapter in the ticket, its first row, end of its rows), all within `rows`.
    """

    op: int
    group: int
    rows: range
    modules: range
    segments: Sequence[tuple[int, int, int]]


def iter_own_parts(
    ticket: WorkerTicket, groups: Sequence[FusedGroup], worker: int, tokens_per_worker: int
) -> Iterator[OwnPart]:
    """The parts of a worker of the ticket, in the order of their ops; found one by one, when asked for.

    Args:
        ticket: that this worker was given.
        groups: of a layer, in the order of the tables.
        worker: its index.
        tokens_per_worker: from which another worker computes a part of a module.
    """
    mask = ticket.ticket.workers
    worker_place, num_workers = (mask & ((1 << worker) - 1)).bit_count(), mask.bit_count()
    changes: list[list[bool]] = (ticket.entries[..., RANKS] != 0).any(axis=0).tolist()
    # Shares of the ops in front of this one in its layer.
    layer_shares, last_layer = 0, -1
    for op, (layer, group) in enumerate(ticket.ops):
        runs = _module_runs(changes[op][: len(groups[group].modules)])
        cut = OpCut.of(ticket.num_rows, len(runs), num_workers, tokens_per_worker)
        if layer != last_layer:
            layer_shares, last_layer = 0, layer
        place = (worker_place - layer_shares) % num_workers
        layer_shares += cut.num_shares
        if place < cut.num_shares:
            rows, own_runs = cut.share(place)
            modules = range(runs[own_runs.start].start, runs[own_runs.stop - 1].stop)
            yield OwnPart(op, group, rows, modules, _segments_in(rows, ticket.segments))


def count_workers(
    rows: Sequence[AssistRows],
    ops: Sequence[tuple[int, int]],
    num_rows: int,
    num_workers: int,
    tokens_per_worker: int,
) -> int:
    """How many of `num_workers` a ticket is worth: one for each share of the ops of a layer.

    Args:
        rows: of the adapters.
        ops: (layer, group index) of each op, at least one.
        num_rows: of the step.
        num_workers: that there are, at least one.
        tokens_per_worker: from which another worker computes a part of a module.
    """
    layers, groups = np.array(ops, dtype=np.int64).T
    changes = np.zeros((len(ops), MAX_GROUP_MODULES), dtype=np.bool_)
    for row in rows:
        changes |= row.table[layers, groups, RANKS] != 0
    shares_of = [
        OpCut.of(num_rows, max(1, num_modules), num_workers, tokens_per_worker).num_shares
        for num_modules in range(MAX_GROUP_MODULES + 1)
    ]
    op_shares: NDArray[np.int64] = np.array(shares_of)[changes.sum(axis=1)]
    return min(num_workers, int(np.bincount(layers, weights=op_shares).max()))


def _module_runs(is_changed: Sequence[bool]) -> list[range]:
    """The modules of a group, cut in front of each that is changed but the first; at least one run."""
    starts = [module for module, changed in enumerate(is_changed) if changed]
    cuts = [0, *starts[1:], len(is_changed)]
    return [range(first, end) for first, end in pairwise(cuts)]


def _segments_in(rows: range, segments: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
    return [
        (segment, max(first_row, rows.start), min(first_row + num_rows, rows.stop))
        for segment, (first_row, num_rows) in enumerate(segments)
        if first_row < rows.stop and rows.start < first_row + num_rows
    ]
