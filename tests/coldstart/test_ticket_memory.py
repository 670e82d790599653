from __future__ import annotations

import os

import numpy as np
import pytest

from caraserve_cli.coldstart.ticket_memory import NUM_PLACES, AssistRows, Ticket, TicketMemory
from caraserve_kernels.host_exchange import MAX_WORKERS
from caraserve_kernels.lora_layout import TABLE_FIELDS


@pytest.fixture
def tickets():
    made = TicketMemory.create(max_ops=6, max_segments=3)
    yield made
    made.close()


def _rows(first_row: int, num_rows: int) -> AssistRows:
    table = np.random.default_rng(first_row).integers(-1, 1 << 40, (3, 2, TABLE_FIELDS))
    return AssistRows(first_row, num_rows, table)


def test_a_worker_reads_in_each_place_what_was_written_there(tickets):
    other = TicketMemory(os.dup(tickets.fd), 6, 3)
    ops = ((0, 1), (2, 0), (2, 1))
    rows = [_rows(0, 3), _rows(5, 2)]
    before = {0: 17, MAX_WORKERS - 1: 2**31 - 1}
    written = [Ticket(100 * place + 1, 3, 1 << (MAX_WORKERS - 1) | place) for place in range(NUM_PLACES)]
    for place, ticket in enumerate(written):
        tickets.write(place, ticket, 8, before, ops, rows)
    for place, ticket in enumerate(written):
        read = other.read(place)
        assert (read.ticket, read.num_rows, read.before) == (ticket, 8, before)
        assert tuple(read.ops) == ops
        assert list(read.segments) == [(0, 3), (5, 2)]
        for segment, row in enumerate(rows):
            for index, (layer, group) in enumerate(ops):
                assert np.array_equal(read.entries[segment, index], row.table[layer, group])
    other.close()


def test_nothing_of_a_longer_ticket_is_left_in_a_place(tickets):
    tickets.write(0, Ticket(1, 2, 3), 8, {4: 9}, ((0, 0), (1, 1)), [_rows(0, 3), _rows(5, 2)])
    tickets.write(0, Ticket(3, 1, 1), 2, {}, ((1, 0),), [])
    read = tickets.read(0)
    assert (read.ticket, read.num_rows, read.before) == (Ticket(3, 1, 1), 2, {})
    assert (list(read.ops), list(read.segments), read.entries.size) == ([(1, 0)], [], 0)


@pytest.mark.parametrize(("num_ops", "num_adapters"), [(7, 1), (1, 4)])
def test_what_has_no_room_is_refused(tickets, num_ops, num_adapters):
    with pytest.raises(ValueError, match="room for 6 and 3"):
        tickets.write(0, Ticket(1, num_ops, 1), 9, {}, [(0, 0)] * num_ops, [_rows(0, 1)] * num_adapters)
