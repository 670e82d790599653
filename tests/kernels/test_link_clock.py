"""The emulated link: pieces one after the other, each as long as its bytes need."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
import torch

from caraserve_kernels import link_clock as module
from caraserve_kernels.link_clock import TURN_BYTES, pace, paced_rate
from tests.kernels.test_lora_pool import compile_for_hopper
from tests.moved_clock import MovedClock

MEGABYTE = 10**6


def new_clock() -> torch.Tensor:
    return torch.zeros(1, dtype=torch.int64)


def test_a_piece_takes_the_link_for_its_bytes() -> None:
    clock, began_ns = new_clock(), time.perf_counter_ns()
    pace(clock, 30 * MEGABYTE, 1e9)
    ended_ns = time.perf_counter_ns()
    assert ended_ns - began_ns >= 30e6
    assert began_ns + 30e6 <= int(clock) <= ended_ns


def test_a_link_that_was_idle_gives_nothing_back() -> None:
    clock = new_clock()
    pace(clock, MEGABYTE, 1e9)
    free_at = int(clock)
    time.sleep(0.01)
    pace(clock, 0, 1e9)
    assert int(clock) >= free_at + 10_000_000


def test_pieces_of_several_senders_follow_one_another() -> None:
    clock, ends = new_clock(), []

    def send() -> None:
        for _ in range(5):
            pace(clock, 2 * MEGABYTE, 1e9)
            ends.append(time.perf_counter_ns())

    senders = [threading.Thread(target=send) for _ in range(4)]
    began_ns = time.perf_counter_ns()
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    assert len(ends) == 20
    assert int(clock) >= began_ns + 20 * 2_000_000
    # Whenever a sender went on, the pieces until then had had their time.
    assert all(end - began_ns >= (index + 1) * 2_000_000 for index, end in enumerate(sorted(ends)))


class OtherSender(MovedClock):
    """Sends once, while whoever looks at this clock has its first turn."""

    def __init__(self, send: Callable[[], None]) -> None:
        super().__init__()
        self._to_send: list[Callable[[], None]] = [send]

    def sleep(self, duration_s: float) -> None:
        if self._to_send:
            self._to_send.pop()()
        else:
            super().sleep(duration_s)


@pytest.mark.parametrize(
    ("num_bytes", "turn_bytes"), [(1000, TURN_BYTES), (1000, None), (50 * MEGABYTE, None)]
)
def test_a_sender_overtakes_the_turns_that_another_has_not_had_yet(
    num_bytes: int, turn_bytes: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a piece without turns is not cut."""
    clock, ends_ns = new_clock(), []

    def send_activations() -> None:
        ends_ns.append(int(clock))
        pace(clock, num_bytes, 1e9, turn_bytes=turn_bytes)
        ends_ns.append(int(clock))

    monkeypatch.setattr(module, "time", OtherSender(send_activations))
    pace(clock, 100 * MEGABYTE, 1e9, turn_bytes=20 * MEGABYTE)
    first_turn_ns, activations_ns = ends_ns
    assert activations_ns == first_turn_ns + num_bytes
    assert int(clock) >= activations_ns + 80_000_000


@pytest.mark.parametrize(
    ("num_bytes", "bytes_per_s"), [(1, 0.0), (1, -1.0), (1, float("nan")), (-1, 1e9), (3 * 10**9, 1e9)]
)
def test_what_would_never_end_is_refused(num_bytes: int, bytes_per_s: float) -> None:
    clock = new_clock()
    with pytest.raises(ValueError, match="bytes"):
        pace(clock, num_bytes, bytes_per_s)
    assert int(clock) == 0


def test_other_clocks_are_refused() -> None:
    for clock in (torch.zeros(1, dtype=torch.int32), torch.zeros(2, dtype=torch.int64)):
        with pytest.raises(ValueError, match="int64"):
            pace(clock, 1, 1e9)


def test_paced_and_true_transfers_together_move_at_the_emulated_rate() -> None:
    rate = paced_rate(3e9, 55e9)
    assert 1e9 / rate + 1e9 / 55e9 == pytest.approx(1e9 / 3e9)
    for link in (3e9, 1e9):
        with pytest.raises(ValueError, match="cannot emulate"):
            paced_rate(3e9, link)


def test_a_piece_has_as_many_rows_as_are_said_when_its_turn_comes() -> None:
    clock, num_rows = new_clock(), torch.zeros(1, dtype=torch.int32)
    began_ns = time.perf_counter_ns()
    num_rows.fill_(3)
    pace(clock, 10 * MEGABYTE, 1e9, num_rows=num_rows)
    assert int(clock) >= began_ns + 30_000_000


def test_no_rows_neither_take_the_link_nor_wait_for_it() -> None:
    clock, num_rows = new_clock(), torch.zeros(1, dtype=torch.int32)
    clock.fill_(free_at := time.perf_counter_ns() + 10_000_000)
    pace(clock, 10 * MEGABYTE, 1e9, num_rows=num_rows)
    assert int(clock) == free_at


@pytest.mark.parametrize("counts_rows", [False, True])
def test_compiled_for_hopper_it_reserves_before_it_waits(counts_rows: bool) -> None:
    pointers, constants = {"clock_ptr": "*i64"}, {}
    if counts_rows:
        pointers |= {"num_rows_ptr": "*i32"}
    else:
        constants |= {"num_rows_ptr": None}
    ptx = compile_for_hopper(module._pace_kernel, pointers, ["piece_ns", "turn_ns"], constants, 1)
    reserved = ptx.index(".add.u64")
    assert ptx.index("%globaltimer") < ptx.index(".max.s64") < reserved < ptx.index("nanosleep")
    assert "%globaltimer" in ptx[ptx.index("nanosleep") :], "the timer is not read again"
    assert "griddepcontrol" not in ptx
