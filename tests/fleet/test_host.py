"""What replicas on one machine share of it, and clocks of other machines."""

from __future__ import annotations

import os
import time

import pytest

from caraserve_cli.fleet.host import asked_threads, host_facts, share_beside, share_out
from caraserve_cli.fleet.host_clock import HostedClock, measure_offset, monotonic_ms


@pytest.mark.parametrize(("num_cores", "num_replicas"), [(2, 2), (16, 8), (16, 3), (7, 2), (5, 5)])
def test_replicas_divide_the_cores_and_the_memory(num_cores: int, num_replicas: int) -> None:
    cores = tuple(range(100, 100 + num_cores))
    shares = [share_out(cores, 10**9, index, num_replicas, None) for index in range(num_replicas)]
    assert tuple(core for share in shares for core in share.cores) == cores
    assert max(len(share.cores) for share in shares) - min(len(share.cores) for share in shares) <= 1
    assert sum(share.host_bytes for share in shares) <= 10**9
    assert all(1 <= share.num_threads <= len(share.cores) for share in shares)


def test_with_fewer_cores_than_replicas_all_share_all() -> None:
    shares = [share_out((3, 4), 900, index, 3, None) for index in range(3)]
    assert [(share.cores, share.num_threads, share.host_bytes) for share in shares] == [((3, 4), 1, 300)] * 3


def test_threads_are_as_many_as_asked_for_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    assert share_out(range(16), 0, 0, 2, 3).num_threads == 3
    assert share_out(range(16), 0, 0, 2, 64).num_threads == 8
    for text, asked in (("3", 3), ("", None), ("0", None), ("many", None)):
        monkeypatch.setenv("OMP_NUM_THREADS", text)
        assert asked_threads() == asked


def test_one_more_gets_the_part_that_others_have_least_of() -> None:
    cores = tuple(range(6))
    halves = [share_out(cores, 1000, index, 2, None) for index in range(2)]
    alone = share_beside([], cores, 900, None)
    assert (alone.cores, alone.num_threads, alone.host_bytes) == (cores, 6, 900)
    for there, free in (halves, halves[::-1]):
        beside = share_beside([there], cores, 900, None)
        assert (beside.cores, beside.num_threads, beside.host_bytes) == (free.cores, 3, 900)
    assert len(share_beside(halves, cores, 900, None).cores) == 2


def test_the_facts_of_this_process(tmp_path: os.PathLike[str]) -> None:
    facts = host_facts([str(tmp_path), f"{tmp_path}/nothing"])
    assert facts.pid == os.getpid()
    assert facts.missing_paths == (f"{tmp_path}/nothing",)
    assert set(facts.cores) == os.sched_getaffinity(0)
    assert facts.machine == host_facts().machine


def test_the_offset_of_another_clock_is_right_within_its_error() -> None:
    """The answer comes at once and the question takes a while: as wrong as it can be."""
    ahead_ms = 12_345.0

    def read_there_ms() -> float:
        time.sleep(0.002)
        return monotonic_ms() + ahead_ms

    offset = measure_offset(read_there_ms)
    assert offset.error_ms >= 1.0
    assert abs(offset.ahead_ms - ahead_ms) <= offset.error_ms


def test_a_hosted_clock_stands_until_it_is_set() -> None:
    clock = HostedClock()
    assert clock() == 0.0
    clock.set(monotonic_ms() - 1000.0)
    assert 1000.0 <= clock() <= monotonic_ms()
