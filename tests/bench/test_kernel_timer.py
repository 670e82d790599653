"""Timing on the CPU: what is called, in which order, and what the times are divided by."""

from __future__ import annotations

import itertools

import torch

from caraserve_cli.bench.kernel_timer import KernelTimer
from caraserve_cli.fleet.device_timer import Work

CPU = torch.device("cpu")


def make_timer(repeats: int) -> KernelTimer:
    """A second passes between any two looks at its clock."""
    seconds = itertools.count()
    return KernelTimer(CPU, repeats, clock=lambda: float(next(seconds)))


def test_repeats_are_interleaved_after_one_that_is_not_measured() -> None:
    calls: list[str] = []
    timer = make_timer(repeats=2)
    times = timer.time_us(
        {
            "a": Work(lambda: calls.append("a"), 1, captured=False),
            "b": Work(lambda: calls.append("b"), 4, captured=False),
        }
    )
    assert calls == ["a", "b"] * 3
    assert times["a"].values == (1e6, 1e6)
    assert times["b"].values == (0.25e6, 0.25e6)


def test_fewer_repeats_for_what_takes_long() -> None:
    timer = make_timer(repeats=4)
    work = {"a": Work(lambda: None, 1, captured=False)}
    assert len(timer.time_us(work, 3)["a"].values) == 3
    assert len(timer.time_us(work, 9)["a"].values) == 4


def test_the_time_of_one_launch_of_several() -> None:
    calls: list[int] = []
    work = make_timer(repeats=1).rotate([lambda n=n: calls.append(n) for n in range(3)])  # type: ignore[misc]
    work.run()
    assert (calls, work.divide_by, work.captured) == ([0, 1, 2], 3, False)
