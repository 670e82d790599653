"""Which parts of a ticket's ops a worker computes (`perf.op_cut` cuts them).

Only modules that some adapter of the ticket changes make a share; the columns of the others, zeros, go with
the module in front of them. The ops of a layer begin with different workers, so that with enough of them each
owns the same few modules of every layer, and knows early which weights it reads next. Where there are fewer,
an op has all that it can use and shares them with the ops around it, rather than having the few that those
leave: the ops come one after the other, and a worker with parts of two loses nothing but room in its cache.

Several workers share a module where there are enough (`Slice`). The ticket's adapters may have different
ranks: the largest one of the op decides how many slices there are, and of each adapter each has its part.

Knows no tensors; reads tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from caraserve_cli.coldstart.ticket_memory import AssistRows, WorkerTicket
from caraserve_cli.perf.op_cut import OpCut, Slice
from caraserve_kernels.lora_layout import MAX_GROUP_MODULES, RANKS, FusedGroup


class OwnPart(NamedTuple):
    """What one worker computes of one op.

    Attributes:
        op: index in the ticket.
        group: index of the fused group.
        rows: of the step, of which the adapters' are `segments`.
        modules: of the group.
        slice: of the LoRA rows of these modules, and of the columns of each.
        peers: the workers that have the other slices; each needs what all have computed of the LoRA rows.
        segments: (index of the adapter in the ticket, its first row, end of its rows), all within `rows`.
    """

    op: int
    group: int
    rows: range
    modules: range
    slice: Slice
    peers: Sequence[int]
    segments: Sequence[tuple[int, int, int]]


def iter_own_parts(
    ticket: WorkerTicket, groups: Sequence[FusedGroup], worker: int, tokens_per_worker: int
) -> Iterator[OwnPart]:
    """The parts of a worker of the ticket, in the order of their ops; found one by one, when asked for.

    Args:
        ticket: that this worker was given.
        groups: of a layer, in the order of the tables.
        worker: its index.
        tokens_per_worker: from which another worker computes further rows of a module.
    """
    mask = ticket.ticket.workers
    workers = [index for index in range(mask.bit_length()) if mask >> index & 1]
    worker_place, num_workers = workers.index(worker), len(workers)
    ranks: list[list[int]] = ticket.entries[..., RANKS].max(axis=0, initial=0).tolist()
    # Shares of the ops in front of this one in its layer.
    layer_shares, last_layer = 0, -1
    for op, (layer, group) in enumerate(ticket.ops):
        runs = _module_runs(ranks[op][: len(groups[group].modules)])
        cut = OpCut.of(ticket.num_rows, len(runs), num_workers, tokens_per_worker, max(1, *ranks[op]))
        if layer != last_layer:
            layer_shares, last_layer = 0, layer
        place = (worker_place - layer_shares) % num_workers
        layer_shares += cut.num_shares
        if place < cut.num_shares:
            rows, own_runs, own_slice = cut.share(place)
            modules = range(runs[own_runs.start].start, runs[own_runs.stop - 1].stop)
            peers = [
                workers[(worker_place + other - own_slice.place) % num_workers]
                for other in range(own_slice.num_slices)
                if other != own_slice.place
            ]
            segments = _segments_in(rows, ticket.segments)
            yield OwnPart(op, group, rows, modules, own_slice, peers, segments)


def count_workers(
    rows: Sequence[AssistRows],
    ops: Sequence[tuple[int, int]],
    num_rows: int,
    num_workers: int,
    tokens_per_worker: int,
) -> int:
    """How many of `num_workers` a ticket is worth: one for each share of the ops of a layer, each of them cut
    as if it were alone.

    Args:
        rows: of the adapters.
        ops: (layer, group index) of each op, at least one.
        num_rows: of the step.
        num_workers: that there are, at least one.
        tokens_per_worker: from which another worker computes further rows of a module.
    """
    layers, groups = np.array(ops, dtype=np.int64).T
    ranks = np.zeros((len(ops), MAX_GROUP_MODULES), dtype=np.int64)
    for row in rows:
        np.maximum(ranks, row.table[layers, groups, RANKS], out=ranks)
    # Changed modules of each op, and the largest rank of any of them: the same for nearly all layers.
    kinds = list(zip(np.count_nonzero(ranks, axis=1).tolist(), ranks.max(axis=1).tolist(), strict=True))
    shares_of = {
        (num_modules, lora_rank): OpCut.of(
            num_rows, max(1, num_modules), num_workers, tokens_per_worker, max(1, lora_rank)
        ).num_shares
        for num_modules, lora_rank in set(kinds)
    }
    op_shares = [shares_of[kind] for kind in kinds]
    return min(num_workers, int(np.bincount(layers, weights=op_shares).max()))


def _module_runs(ranks: Sequence[int]) -> list[range]:
    """The modules of a group, cut in front of each that is changed but the first; at least one run."""
    starts = [module for module, lora_rank in enumerate(ranks) if lora_rank]
    cuts = [0, *starts[1:], len(ranks)]
    return [range(first, end) for first, end in pairwise(cuts)]


def _segments_in(rows: range, segments: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
    return [
        (segment, max(first_row, rows.start), min(first_row + num_rows, rows.stop))
        for segment, (first_row, num_rows) in enumerate(segments)
        if first_row < rows.stop and rows.start < first_row + num_rows
    ]
