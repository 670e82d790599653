"""Workers' parts of tickets, computed one worker after the other in this process."""

from __future__ import annotations

import mmap
import os
import random
from collections import Counter
from collections.abc import Mapping
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from caraserve_cli.adapters.packing import MAX_LORA_RANK
from caraserve_cli.coldstart.arena_view import ArenaView
from caraserve_cli.coldstart.exchange_memory import ExchangeMemory
from caraserve_cli.coldstart.own_parts import count_workers, iter_own_parts
from caraserve_cli.coldstart.parts_ahead import PartsAhead
from caraserve_cli.coldstart.read_ahead import ReadAhead
from caraserve_cli.coldstart.ticket_memory import AssistRows, Ticket, WorkerTicket
from caraserve_kernels.lora_layout import TABLE_FIELDS
from tests.coldstart.worker_pools import GROUPS, LORA_RANKS, MAX_ROWS, OPS, adapters, reference

_ARENA_BYTES = 1 << 20


@cache
def _arena():
    """A worker's view of an arena, and the tables of the adapters in it."""
    fd = os.memfd_create("arena")
    os.ftruncate(fd, _ARENA_BYTES)
    torch.manual_seed(0)
    tables = adapters(torch.frombuffer(mmap.mmap(fd, _ARENA_BYTES), dtype=torch.float32), LORA_RANKS)
    view = ArenaView(fd, _ARENA_BYTES, torch.float32)
    os.close(fd)
    return view, tables


@st.composite
def _steps(draw: st.DrawFn):
    """Rows of several adapters, gaps between them: (rows, how many rows the step has)."""
    num_rows = draw(st.integers(1, MAX_ROWS))
    cuts = sorted(draw(st.sets(st.integers(0, num_rows), max_size=6)))
    _, tables = _arena()
    rows = [
        AssistRows(first, end - first, tables[draw(st.integers(0, len(tables) - 1))])
        for first, end in zip(cuts[::2], cuts[1::2], strict=False)
    ]
    return rows, num_rows


def _ticket(rows, num_rows, ops, mask) -> WorkerTicket:
    entries = [[row.table[op] for op in ops] for row in rows]
    return WorkerTicket(
        Ticket(1, len(ops), mask),
        num_rows,
        {},
        ops,
        [(row.first_row, row.num_rows) for row in rows],
        np.array(entries, dtype=np.int64).reshape(len(rows), len(ops), TABLE_FIELDS),
    )


def _workers(mask: int) -> list[int]:
    return [worker for worker in range(mask.bit_length()) if mask >> worker & 1]


def _compute(workers: Mapping[int, PartsAhead], op: int, chance: random.Random) -> None:
    """Have the parts of an op computed, in any order in which peers do not overtake each other."""
    parts = {
        worker: part for worker, ahead in workers.items() if (part := ahead.next_part()) and part.op == op
    }
    unshrunk, shrunk = set(parts), set()
    while unshrunk or shrunk:
        able = [worker for worker in shrunk if not unshrunk.intersection(parts[worker].peers)]
        worker = chance.choice([*sorted(unshrunk), *sorted(able)])
        if worker in unshrunk:
            workers[worker].shrink_next()
            unshrunk.remove(worker)
            shrunk.add(worker)
        else:
            workers[worker].expand_next()
            shrunk.remove(worker)


_STEPS = {"step": _steps(), "mask": st.integers(1, (1 << 9) - 1), "tokens_per_worker": st.integers(1, 20)}


@settings(max_examples=100, deadline=None)
@given(**_STEPS)
def test_every_module_of_every_row_of_every_op_is_one_workers(step, mask, tokens_per_worker):
    rows, num_rows = step
    ticket = _ticket(rows, num_rows, OPS, mask)
    found: Counter[tuple[int, int, int]] = Counter()
    for worker in _workers(mask):
        parts = list(iter_own_parts(ticket, GROUPS, worker, tokens_per_worker))
        assert [part.op for part in parts] == sorted({part.op for part in parts})
        for part in parts:
            widths = GROUPS[part.group].out_widths
            found.update(
                (part.op, row, module, column)
                for row in part.rows
                for module in part.modules
                for column in part.slice.of(widths[module])
            )
    assert set(found.values()) == {1}
    assert len(found) == sum(num_rows * sum(GROUPS[group].out_widths) for _, group in OPS)


@settings(max_examples=100, deadline=None)
@given(**_STEPS)
def test_peers_have_the_other_slices_of_the_same_modules_and_rows(step, mask, tokens_per_worker):
    rows, num_rows = step
    ticket = _ticket(rows, num_rows, OPS, mask)
    parts = {
        (worker, part.op): part
        for worker in _workers(mask)
        for part in iter_own_parts(ticket, GROUPS, worker, tokens_per_worker)
    }
    for (worker, op), part in parts.items():
        slices = {part.slice}
        for peer in part.peers:
            other = parts[peer, op]
            assert (other.rows, other.modules) == (part.rows, part.modules)
            assert worker in other.peers
            slices.add(other.slice)
        assert len(slices) == len(part.peers) + 1 == part.slice.num_slices


@settings(max_examples=150, deadline=None)
@given(**_STEPS, seed=st.integers(0, 1000), num_ops=st.integers(1, len(OPS)))
def test_results_are_right_however_much_was_ready(step, mask, tokens_per_worker, seed, num_ops):
    rows, num_rows = step
    view, _ = _arena()
    ops = OPS[:num_ops]
    ticket, chance = _ticket(rows, num_rows, ops, mask), random.Random(seed)
    memory = ExchangeMemory.create(MAX_ROWS, 48, 96, torch.float32, pinned=False)
    workers = [
        PartsAhead(
            ticket,
            iter_own_parts(ticket, GROUPS, worker, tokens_per_worker),
            GROUPS,
            memory,
            ReadAhead(view),
            view.elements,
        )
        for worker in _workers(mask)
    ]
    for op, (layer, group_index) in enumerate(ops):
        group = GROUPS[group_index]
        x, result = memory.rows(num_rows, group.in_width, sum(group.out_widths))
        # Views may have been made, and nothing else.
        for ahead in workers:
            for _ in range(chance.choice((0, 1, 3, 100))):
                ahead.advance()
        x.copy_(torch.randn(x.shape))
        result.fill_(torch.nan)
        memory.h(MAX_ROWS, 3 * MAX_LORA_RANK, torch.float32).fill_(torch.nan)
        _compute(dict(zip(_workers(mask), workers, strict=True)), op, chance)
        expected = torch.zeros(result.shape, dtype=torch.float64)
        for row in rows:
            own = slice(row.first_row, row.first_row + row.num_rows)
            expected[own] = reference(x[own], view.elements, row.table[layer, group_index].tolist(), group)
        assert torch.allclose(result.double(), expected, rtol=1e-5, atol=1e-5)
    for ahead in workers:
        assert ahead.next_part() is None
        assert not ahead.advance()
    memory.close()


@settings(max_examples=100, deadline=None)
@given(
    step=_steps(),
    num_free=st.integers(1, 20),
    tokens_per_worker=st.integers(1, 20),
    ops=st.sets(st.sampled_from(OPS), min_size=1),
)
def test_a_ticket_has_no_workers_without_a_part_and_parts_as_with_all(step, num_free, tokens_per_worker, ops):
    rows, num_rows = step
    ops = sorted(ops)
    num_workers = count_workers(rows, ops, num_rows, num_free, tokens_per_worker)
    assert 1 <= num_workers <= num_free
    computed: list[list[tuple[object, ...]]] = []
    for mask in ((1 << num_workers) - 1, (1 << num_free) - 1):
        ticket = _ticket(rows, num_rows, ops, mask)
        parts = [list(iter_own_parts(ticket, GROUPS, worker, tokens_per_worker)) for worker in _workers(mask)]
        shares = [part[:5] for of_worker in parts for part in of_worker]
        computed.append(sorted(shares, key=repr))
        if mask.bit_count() == num_workers:
            assert all(parts)
    assert computed[0] == computed[1]


@pytest.mark.parametrize(("num_rows", "num_workers"), [(4, 7), (5, 14)])
def test_with_enough_workers_each_has_the_same_module_of_every_layer(num_rows, num_workers):
    """Four tokens a worker: q, k, v, o, gate, up, down for each run of rows."""
    _, tables = _arena()
    rows = [AssistRows(0, num_rows, tables[0])]
    assert count_workers(rows, OPS, num_rows, 64, 4) == num_workers
    ticket = _ticket(rows, num_rows, OPS, (1 << num_workers) - 1)
    owned = set()
    for worker in range(num_workers):
        parts = list(iter_own_parts(ticket, GROUPS, worker, 4))
        assert [OPS[part.op][0] for part in parts] == [0, 1, 2]
        (own,) = {(part.group, part.rows, part.modules) for part in parts}
        assert len(own[2]) == 1
        owned.add(own)
    assert len(owned) == num_workers


def test_with_few_workers_every_op_has_all_that_it_can_use():
    """q, v, o and down of rank 50: with 5 workers two for each module of the first, four for the others."""
    _, tables = _arena()
    rows, ops = [AssistRows(0, 4, tables[3])], [(2, 0), (2, 1), (2, 3)]
    assert count_workers(rows, ops, 4, 5, 16) == 5
    ticket = _ticket(rows, 4, ops, 0b11111)
    parts = [part for worker in range(5) for part in iter_own_parts(ticket, GROUPS, worker, 16)]
    assert Counter((part.group, part.modules, part.slice.num_slices) for part in parts) == {
        (0, range(2), 2): 2,
        (0, range(2, 3), 2): 2,
        (1, range(1), 4): 4,
        (3, range(1), 4): 4,
    }
    # With enough of them they are others for each op.
    assert count_workers(rows, ops, 4, 64, 16) == 16


def test_the_largest_rank_decides_for_all_adapters_of_a_ticket():
    _, tables = _arena()
    rows = [AssistRows(0, 2, tables[0]), AssistRows(2, 1, tables[3])]
    for num_adapters, num_workers in ((1, 1), (2, 4)):
        assert count_workers(rows[:num_adapters], [(1, 1)], 3, 8, 16) == num_workers


def test_modules_that_no_adapter_changes_need_no_worker_of_their_own():
    """The second adapter changes q, v and up; what is not changed goes with the module in front of it."""
    _, tables = _arena()
    rows = [AssistRows(0, 3, tables[1])]
    ticket = _ticket(rows, 4, [(0, 0), (0, 2)], 0b111)
    parts = [list(iter_own_parts(ticket, GROUPS, worker, 16)) for worker in range(3)]
    assert [[(part.group, part.modules) for part in of_worker] for of_worker in parts] == [
        [(0, range(2))],
        [(0, range(2, 3))],
        [(2, range(2))],
    ]
