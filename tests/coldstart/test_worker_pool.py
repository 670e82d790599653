from __future__ import annotations

import gc
import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import torch

from caraserve_cli.coldstart.worker_pool import AssistRows, Ticket
from tests.coldstart.worker_pools import MAX_ROWS, OPS, Bench, open_bench, titled, workers_of


@pytest.fixture(scope="module")
def bench():
    with open_bench(3) as made:
        yield made


def _until_usable(bench: Bench, num_workers: int = 3) -> None:
    until_s = time.monotonic() + 30
    while bench.pool.num_workers < num_workers:
        assert bench.pool.poll() == 0, "one had to be replaced"
        assert time.monotonic() < until_s, "the workers do not come back"
        time.sleep(0.001)


def _until_ended(bench: Bench, ticket: Ticket) -> None:
    """By all its workers: the pool has not looked for who is late until then."""
    until_s = time.monotonic() + 30
    while min(bench.memory.done[: ticket.workers.bit_length()]) < ticket.last_number:
        assert time.monotonic() < until_s, "the ticket is not ended"
        time.sleep(0.001)


def _random_rows(bench: Bench, chance: random.Random, num_rows: int) -> list[AssistRows]:
    """Rows of several adapters, gaps between them."""
    cuts = sorted(chance.sample(range(num_rows + 1), min(num_rows + 1, 2 * chance.randint(1, 3))))
    rows = [
        AssistRows(first, end - first, chance.choice(bench.tables))
        for first, end in zip(cuts[::2], cuts[1::2], strict=False)
    ]
    chance.shuffle(rows)
    return rows


def test_many_tickets_of_several_adapters_are_right(bench):
    chance = random.Random(2)
    masks = set()
    for _ in range(40):
        num_rows = chance.randint(1, MAX_ROWS)
        rows = _random_rows(bench, chance, num_rows)
        ops = OPS[chance.randrange(4) :: chance.randint(1, 4)]
        ticket = bench.pool.submit(rows, ops, num_rows)
        masks.add(ticket.workers)
        assert bench.compute(ticket, rows, num_rows, ops=ops)
        _until_usable(bench)
    assert masks == {0b1, 0b11, 0b111}


@pytest.mark.parametrize("num_workers", [1, 2, 4, 5])
def test_any_number_of_workers_is_right(num_workers):
    chance = random.Random(num_workers)
    with open_bench(num_workers) as bench:
        for num_rows in (1, 4, 5, 33, MAX_ROWS):
            rows = _random_rows(bench, chance, num_rows)
            ticket = bench.pool.submit(rows, OPS, num_rows)
            assert bench.compute(ticket, rows, num_rows)
            _until_usable(bench, num_workers)


@pytest.mark.parametrize("num_workers", [1, 2, 3, 4, 5, 6])
def test_workers_that_share_modules_are_right(num_workers):
    """Nobody's rows are cut: workers that modules leave over share them; ranks 16 to 50 beside smaller ones,
    and one adapter without one of the modules."""
    chance = random.Random(num_workers)
    with open_bench(num_workers, tokens_per_worker=MAX_ROWS) as bench:
        alone = [AssistRows(0, 1, bench.tables[3])]
        for num_rows in (1, 2, 20, 64):
            mixed = [AssistRows(row, 1, chance.choice(bench.tables)) for row in range(1, num_rows - 1, 2)]
            for rows in (alone, [*alone, *mixed]):
                ticket = bench.pool.submit(rows, OPS, num_rows)
                assert ticket.workers == (1 << num_workers) - 1
                assert bench.compute(ticket, rows, num_rows)
                _until_usable(bench, num_workers)


def test_modules_are_shared_in_bfloat16_too():
    with open_bench(4, torch.bfloat16, tokens_per_worker=MAX_ROWS) as bench:
        rows = [AssistRows(0, 16, bench.tables[3]), AssistRows(16, 3, bench.tables[0])]
        for _ in range(3):
            assert bench.compute(bench.pool.submit(rows, OPS, 20), rows, 20)
            _until_usable(bench, 4)


def test_a_ticket_has_a_worker_for_each_part(bench):
    """Four tokens a worker; of q, k, v and gate, up the second adapter changes q, v and up."""
    all_of_it, some_of_it = bench.tables[:2]
    for op, table, num_rows, workers in (
        ((0, 1), all_of_it, 4, 0b1),
        ((0, 1), all_of_it, 5, 0b11),
        ((0, 1), all_of_it, 64, 0b111),
        ((0, 0), all_of_it, 1, 0b111),
        ((0, 0), some_of_it, 1, 0b11),
        ((0, 2), some_of_it, 1, 0b1),
    ):
        rows = [AssistRows(0, num_rows, table)]
        ticket = bench.pool.submit(rows, [op], num_rows)
        assert ticket.workers == workers
        assert bench.compute(ticket, rows, num_rows, ops=[op])
        _until_usable(bench)


def test_bfloat16_is_right():
    with open_bench(2, torch.bfloat16) as bench:
        chance = random.Random(2)
        for _ in range(5):
            rows = _random_rows(bench, chance, 30)
            assert bench.compute(bench.pool.submit(rows, OPS, 30), rows, 30)


def test_numbers_go_on_from_ticket_to_ticket(bench):
    first = bench.pool.submit([], OPS, 4)
    assert bench.compute(first, [], 4)
    second = bench.pool.submit([], OPS[:2], 4)
    assert second.first_number == first.first_number + len(OPS)
    assert bench.compute(second, [], 4, ops=OPS[:2])
    _until_usable(bench)


def test_what_workers_may_still_read_is_known(bench):
    before = bench.pool.last_number
    assert bench.pool.is_over(before)
    ticket = bench.pool.submit([], OPS, 4)
    assert bench.pool.last_number == ticket.last_number
    assert bench.pool.is_over(before)
    assert not bench.pool.is_over(ticket.last_number)
    assert bench.compute(ticket, [], 4)
    _until_usable(bench)
    assert bench.pool.is_over(ticket.last_number)


def test_a_ticket_without_ops_is_for_nobody(bench):
    ticket = bench.pool.submit([AssistRows(0, 4, bench.tables[0])], [], 4)
    assert (ticket.num_ops, ticket.workers) == (0, 0)
    assert bench.pool.submit([], [], 4).first_number == ticket.first_number


def test_tickets_that_wait_behind_each_other_are_all_computed(bench):
    # A worker outside the first ticket's mask is given the second one alone.
    rows = [AssistRows(1, 3, bench.tables[1])]
    many = [AssistRows(0, 20, bench.tables[0])]
    few = OPS[1::4]
    tickets = [
        (bench.pool.submit(of_ticket, ops, num_rows), of_ticket, num_rows, ops)
        for of_ticket, ops, num_rows in ((rows, few, 4), (many, OPS, 20), (rows, few, 4))
    ]
    assert [ticket.workers for ticket, _, _, _ in tickets] == [0b1, 0b111, 0b1]
    assert all(bench.compute(*of_ticket, ops=ops) for *of_ticket, ops in tickets)
    _until_usable(bench)


def test_of_a_failed_ticket_the_rest_is_skipped_and_the_next_one_is_right(bench):
    rows = [AssistRows(0, 20, bench.tables[0])]
    failed = bench.pool.submit(rows, OPS, 20)
    following = bench.pool.submit(rows, OPS, 20)
    # As the device does it when a result is too late, here before any op was sent.
    bench.memory.failed[0] = failed.first_number
    assert not bench.compute(failed, rows, 20)
    assert bench.compute(following, rows, 20)
    _until_usable(bench)


def test_an_abandoned_ticket_does_not_keep_workers(bench):
    rows = [AssistRows(0, 20, bench.tables[0])]
    ticket = bench.pool.submit(rows, OPS, 20)
    bench.memory.failed[0] = ticket.last_number
    _until_ended(bench, ticket)
    _until_usable(bench)
    assert bench.compute(bench.pool.submit(rows, OPS, 20), rows, 20)
    assert bench.pool.poll() == 0


def test_no_more_tickets_are_taken_than_there_are_places_for(bench):
    rows = [AssistRows(0, 20, bench.tables[0])]
    tickets: list[Ticket] = []
    while bench.pool.num_workers:
        tickets.append(bench.pool.submit(rows, OPS[:1], 20))
    with pytest.raises(ValueError, match="no worker can be given work"):
        bench.pool.submit(rows, OPS[:1], 20)
    assert len(tickets) >= 2
    assert all(bench.compute(ticket, rows, 20, ops=OPS[:1]) for ticket in tickets)
    _until_usable(bench)


def test_nobody_writes_a_result_while_another_may_still_write_an_earlier_one(bench):
    rows = [AssistRows(0, 20, bench.tables[0])]
    late, following = (bench.pool.submit(rows, OPS, 20) for _ in range(2))
    stopped = min(workers_of(os.getpid()))
    os.kill(stopped, signal.SIGSTOP)
    try:
        assert not bench.compute(late, rows, 20, late_ms=50)
        with ThreadPoolExecutor() as device:
            computed = device.submit(bench.compute, following, rows, 20)
            until_s = time.monotonic() + 30
            while bench.memory.sent[0] != following.first_number:
                assert time.monotonic() < until_s, "the op is not sent"
                time.sleep(0.001)
            time.sleep(0.2)  # for whoever would write
            assert max(bench.memory.done) < following.first_number
            assert bench.pool.num_workers == 0
            os.kill(stopped, signal.SIGCONT)
        assert computed.result()
    finally:
        os.kill(stopped, signal.SIGCONT)
    _until_usable(bench)


def test_rows_that_the_exchange_has_no_room_for_are_refused(bench):
    with pytest.raises(ValueError, match="room for"):
        bench.pool.submit([], OPS, MAX_ROWS + 1)


def test_workers_do_not_end_at_ctrl_c(bench):
    workers = workers_of(os.getpid())
    for worker in workers:
        os.kill(worker, signal.SIGINT)
    rows = [AssistRows(0, 20, bench.tables[0])]
    assert bench.compute(bench.pool.submit(rows, OPS, 20), rows, 20)
    assert bench.pool.poll() == 0
    assert workers_of(os.getpid()) == workers


def test_each_worker_is_on_its_core_with_one_thread(bench):
    cores = sorted(os.sched_getaffinity(0))
    workers = sorted(workers_of(os.getpid()))
    assert len(workers) == 3
    assert {min(os.sched_getaffinity(worker)) for worker in workers} == set(cores[:3])
    for worker in workers:
        assert len(os.sched_getaffinity(worker)) == 1
        assert psutil.Process(worker).num_threads() == 1


def test_workers_cannot_write_to_the_arena(bench):
    for worker in workers_of(os.getpid()):
        lines = Path(f"/proc/{worker}/maps").read_text().splitlines()
        modes = [line.split()[1] for line in lines if "memfd:arena" in line]
        assert modes == ["r--s"]


def test_close_leaves_no_process_and_no_fd_and_may_come_twice():
    gc.collect()  # what earlier tests left open is not closed in the middle of this one
    fds, children = set(os.listdir("/proc/self/fd")), set(psutil.Process().children(recursive=True))
    others = workers_of(os.getpid())
    with open_bench(2) as bench:
        workers = workers_of(os.getpid()) - others
        assert len(workers) == 2
        rows = [AssistRows(0, 20, bench.tables[0])]
        # In the middle of a ticket.
        bench.pool.submit(rows, OPS, 20)
        bench.pool.close()
        bench.pool.close()
        assert bench.pool.num_workers == 0
        assert bench.pool.poll() == 0
        assert not workers & titled("caraserve-worker")
    # What is mapped goes with those who can still read it.
    del bench
    gc.collect()
    assert set(os.listdir("/proc/self/fd")) == fds
    assert set(psutil.Process().children(recursive=True)) == children
