from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import torch

from caraserve_cli.coldstart import worker_pool
from caraserve_cli.coldstart.exchange_memory import ExchangeMemory
from caraserve_cli.coldstart.worker_pool import AssistRows, WorkerPool
from caraserve_cli.errors import InputError
from caraserve_kernels.lora_layout import FusedGroup
from tests.coldstart.worker_pools import (
    GROUPS,
    MAX_ROWS,
    OPS,
    Bench,
    nurseries_of,
    open_bench,
    parent,
    titled,
    workers_of,
)

_ROOT = Path(__file__).parents[2]
# A machine that swaps may need long; what does not hang needs less.
_PATIENCE_S = 30


def _until(is_so, what: str) -> None:
    until_s = time.monotonic() + _PATIENCE_S
    while not is_so():
        assert time.monotonic() < until_s, what
        time.sleep(0.001)


def _poll_until_usable(bench: Bench, num_workers: int) -> int:
    """How many have died."""
    num_dead = 0

    def all_there() -> bool:
        nonlocal num_dead
        num_dead += bench.pool.poll()
        return bench.pool.num_workers == num_workers

    _until(all_there, "the workers are not replaced")
    return num_dead


@pytest.mark.parametrize(("tokens_per_worker", "adapter"), [(4, 2), (MAX_ROWS, 3)])
def test_fifty_workers_killed_at_any_moment_spoil_no_result_and_no_later_ticket(tokens_per_worker, adapter):
    """With rows cut, and with modules shared."""
    chance = random.Random(3)
    num_dead = num_failed = 0
    with open_bench(3, tokens_per_worker=tokens_per_worker) as bench:
        rows = [AssistRows(1, 9, bench.tables[0]), AssistRows(10, 10, bench.tables[adapter])]
        for _ in range(50):
            victim = chance.choice(sorted(workers_of(os.getpid())))
            killer = threading.Timer(chance.uniform(0, 0.006), os.kill, (victim, signal.SIGKILL))
            ticket = bench.pool.submit(rows, OPS, 22)
            killer.start()
            # `compute` asserts that what comes in time is right.
            num_failed += not bench.compute(ticket, rows, 22, late_ms=100)
            killer.join()
            _until(lambda victim=victim: parent(victim) == 0, "the dead worker is still there")
            num_dead += _poll_until_usable(bench, 3)
            ticket = bench.pool.submit(rows, OPS, 22)
            assert bench.compute(ticket, rows, 22)
            num_dead += _poll_until_usable(bench, 3)
    # On a busy machine one that is only slow may be replaced too.
    assert num_dead >= 50
    assert num_failed > 0, "no worker was killed in the middle of a ticket"


def _workers_in_order() -> list[int]:
    """By their indices, fewer than ten."""
    return sorted(workers_of(os.getpid()), key=lambda worker: psutil.Process(worker).cmdline())


@pytest.mark.parametrize("who_dies", ["the one that has computed its LoRA rows", "the one that has not"])
def test_of_a_shared_module_a_worker_that_dies_between_the_phases_keeps_nobody(who_dies):
    """Two workers share o, and one of them waits for the other when one of the two is killed."""
    ops = [OPS[1]]
    with open_bench(2, tokens_per_worker=MAX_ROWS) as bench:
        rows, shrunk, done = [AssistRows(0, 16, bench.tables[3])], bench.memory.shrunk, bench.memory.done
        before = bench.pool.submit(rows, ops, 16)
        assert bench.compute(before, rows, 16, ops=ops)
        assert list(shrunk[:2]) == [before.last_number] * 2
        lost = bench.pool.submit(rows, ops, 16)
        waiting, stopped = _workers_in_order()
        os.kill(stopped, signal.SIGSTOP)
        with ThreadPoolExecutor() as device:
            computed = device.submit(bench.compute, lost, rows, 16, ops=ops, late_ms=1000)
            _until(lambda: shrunk[0] == lost.last_number, "the LoRA rows are not computed")
            assert shrunk[1] < lost.first_number
            victim, survivor = (
                (waiting, 1) if who_dies.endswith("has computed its LoRA rows") else (stopped, 0)
            )
            os.kill(victim, signal.SIGKILL)
            if victim != stopped:
                os.kill(stopped, signal.SIGCONT)
            assert not computed.result()
        _until(lambda: done[survivor] == lost.last_number, "the survivor still waits")
        assert done[1 - survivor] < lost.first_number
        assert _poll_until_usable(bench, 2) == 1
        for _ in range(3):
            following = bench.pool.submit(rows, ops, 16)
            assert following.workers == 0b11
            assert bench.compute(following, rows, 16, ops=ops)
            _until(lambda: bench.pool.num_workers == 2, "the workers do not come back")


def test_a_new_worker_leaves_tickets_older_than_itself_alone():
    with open_bench(2) as bench:
        rows = [AssistRows(0, 20, bench.tables[0])]
        tickets = [bench.pool.submit(rows, OPS, 20) for _ in range(2)]
        workers = workers_of(os.getpid())
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        _until(lambda: not any(map(parent, workers)), "the dead workers are still there")
        assert _poll_until_usable(bench, 2) == 2
        for ticket in tickets:
            assert not bench.compute(ticket, rows, 20, late_ms=50)
        assert list(bench.memory.done[:2]) == [0, 0]
        assert bench.compute(bench.pool.submit(rows, OPS, 20), rows, 20)


def test_a_new_worker_answers_for_no_dead_one_though_it_has_nothing_to_do_at_first():
    with open_bench(2) as bench:
        rows = [AssistRows(0, 4, bench.tables[0])]
        qkv, o_then_qkv = OPS[:1], (OPS[1], OPS[0])
        lost = bench.pool.submit(rows, qkv, 4)
        _, second = _workers_in_order()
        os.kill(second, signal.SIGKILL)
        _until(lambda: parent(second) == 0, "the dead worker is still there")
        assert _poll_until_usable(bench, 2) == 1
        following = bench.pool.submit(rows, o_then_qkv, 4)
        assert (lost.workers, following.workers) == (0b11, 0b11)
        # The new worker waits for the first one alone, which ends the lost op, and has no part of o.
        assert not bench.compute(lost, rows, 4, ops=qkv, late_ms=200)
        assert bench.memory.done[1] == 0
        assert bench.compute(following, rows, 4, ops=o_then_qkv)


def test_a_worker_that_does_not_end_what_has_failed_is_replaced():
    with open_bench(2) as bench:
        rows = [AssistRows(0, 20, bench.tables[0])]
        ticket = bench.pool.submit(rows, OPS, 20)
        stopped, _ = _workers_in_order()
        os.kill(stopped, signal.SIGSTOP)
        assert not bench.compute(ticket, rows, 20, late_ms=50)
        _until(lambda: bench.memory.done[1] >= ticket.last_number, "the other one does not end it")
        assert _poll_until_usable(bench, 2) == 1
        assert stopped not in workers_of(os.getpid())
        assert bench.compute(bench.pool.submit(rows, OPS, 20), rows, 20)


def _stop_one_that_is_not_ready(bench: Bench, others: set[int]) -> int | None:
    """Kill one of two workers and stop the one that takes its place before it is ready; None if that was
    faster."""
    victim = min(workers_of(os.getpid()) - others)
    (nursery,) = nurseries_of(os.getpid())
    children = Path(f"/proc/{nursery}/task/{nursery}/children")
    os.kill(victim, signal.SIGKILL)
    _until(lambda: bench.pool.poll(), "the death is not reported")
    new: set[int] = set()
    until_s = time.monotonic() + 60  # without a rest between: it is ready in milliseconds
    while not new and time.monotonic() < until_s:
        # The dead one is among them until the nursery has waited for it.
        new = set(map(int, children.read_text().split())) - others - {victim}
    os.kill(min(new), signal.SIGSTOP)
    time.sleep(0.1)
    bench.pool.poll()
    return min(new) if bench.pool.num_workers == 1 else None


def test_a_worker_that_is_stopped_before_it_is_ready_is_replaced(monkeypatch):
    monkeypatch.setattr(worker_pool, "_READY_S", 1.0)
    with open_bench(2) as bench:
        others = {max(workers_of(os.getpid()))}
        for _ in range(20):
            if (stopped := _stop_one_that_is_not_ready(bench, others)) is not None:
                break
        assert stopped is not None, "each was ready before it was stopped"
        assert _poll_until_usable(bench, 2) >= 1
        assert stopped not in workers_of(os.getpid())
        rows = [AssistRows(0, 20, bench.tables[0])]
        assert bench.compute(bench.pool.submit(rows, OPS, 20), rows, 20)


def test_without_the_nursery_there_are_no_workers_and_no_errors():
    with open_bench(2) as bench:
        rows = [AssistRows(0, 20, bench.tables[0])]
        ticket = bench.pool.submit(rows, OPS, 20)
        workers, (nursery,) = workers_of(os.getpid()), nurseries_of(os.getpid())
        os.kill(nursery, signal.SIGKILL)
        _until(lambda: not workers & titled("caraserve-worker"), "workers outlive the nursery")
        assert not bench.compute(ticket, rows, 20, late_ms=50)
        num_dead = 0

        def none_left() -> bool:
            nonlocal num_dead
            num_dead += bench.pool.poll()
            return num_dead == 2

        _until(none_left, "the deaths are not reported")
        assert bench.pool.num_workers == 0
        assert bench.pool.poll() == 0
        # It was waited for: it is no zombie.
        assert parent(nursery) == 0


@pytest.mark.parametrize("what", ["the nursery", "every worker"])
def test_where_no_worker_starts_the_user_is_told_what_to_do(what):
    # The nursery cannot map more than there is, a worker cannot compute with a width below 0.
    arena_bytes, groups = (
        (1 << 40, GROUPS) if what == "the nursery" else (4096, (FusedGroup(("o_proj",), -1, (8,)),))
    )
    memory = ExchangeMemory.create(MAX_ROWS, 48, 96, torch.float32, pinned=False)
    arena_fd = os.memfd_create("arena")
    os.ftruncate(arena_fd, 4096)
    try:
        with pytest.raises(InputError, match="--cpu-workers"):
            WorkerPool(
                groups,
                arena_fd=arena_fd,
                arena_bytes=arena_bytes,
                exchange_memory=memory,
                dtype=torch.float32,
                cores=[min(os.sched_getaffinity(0))],
                tokens_per_worker=4,
            )
    finally:
        os.close(arena_fd)
        memory.close()
    assert not nurseries_of(os.getpid())


def _memory_files_of(pids: set[int]) -> set[Path]:
    """Named shared memory that these processes have mapped; other tests may have some of theirs meanwhile."""
    maps = "".join(Path(f"/proc/{pid}/maps").read_text() for pid in pids)
    return {Path(line.split(maxsplit=5)[5]) for line in maps.splitlines() if "/dev/shm/" in line}


def _leave(how: str) -> tuple[int, set[int]]:
    """Run a main process that ends in this way: its exit status, and the processes that it had started."""
    main = subprocess.Popen(
        [sys.executable, "-m", "tests.coldstart.abandoning_main", how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=_ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        start_new_session=True,
    )
    with main:
        assert main.stdin is not None
        assert main.stdout is not None
        assert main.stdout.readline() == b"ready\n"
        started = nurseries_of(main.pid) | workers_of(main.pid)
        memory_files = _memory_files_of({main.pid, *started})
        main.stdin.write(b"\n")
        main.stdin.flush()
        if how.startswith("kill"):
            main.kill()
        elif how == "interrupt":
            # As the terminal does: the whole process group.
            os.killpg(main.pid, signal.SIGINT)
    assert not [each for each in memory_files if each.exists()]
    return main.returncode, started


@pytest.mark.parametrize(
    ("how", "status"),
    [
        ("kill", -signal.SIGKILL),
        ("kill-forked", -signal.SIGKILL),
        ("exit", 0),
        ("exception", 1),
        ("interrupt", -signal.SIGINT),
    ],
)
def test_no_process_is_left_however_the_main_one_ends(how, status):
    try:
        returncode, started = _leave(how)
        assert returncode == status
        assert len(started) == 3
        # Neither alive nor zombies.
        _until(lambda: not any(map(parent, started)), "processes are left")
    finally:
        for child in titled("forked-child-of-abandoning-main"):
            os.kill(child, signal.SIGKILL)
