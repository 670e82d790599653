"""The emulated link on a GPU: its streams share one queue."""

from __future__ import annotations

import pytest
import torch

from caraserve_kernels.link_clock import pace

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

MEGABYTE = 10**6


def test_pieces_of_two_streams_follow_one_another() -> None:
    clock = torch.zeros(1, dtype=torch.int64, device="cuda")
    pace(clock, 1, 1e9)
    torch.cuda.synchronize()
    before = int(clock)
    streams = [torch.cuda.Stream() for _ in range(2)]  # type: ignore[no-untyped-call]
    for _ in range(10):
        for stream in streams:
            with torch.cuda.stream(stream):
                pace(clock, MEGABYTE, 1e9)
    torch.cuda.synchronize()
    assert int(clock) >= before + 20 * 1_000_000


def test_whoever_comes_after_in_the_stream_waits() -> None:
    clock = torch.zeros(1, dtype=torch.int64, device="cuda")
    pace(clock, 0, 1e9)
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    before.record()
    pace(clock, 50 * MEGABYTE, 1e9)
    after.record()
    torch.cuda.synchronize()
    # The emulated floor, less what two clocks may disagree.
    assert before.elapsed_time(after) >= 49.0


def test_what_another_stream_sends_overtakes_a_long_piece() -> None:
    clock = torch.zeros(1, dtype=torch.int64, device="cuda")
    pace(clock, 1, 1e9)
    adapter, activations = (torch.cuda.Stream() for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    with torch.cuda.stream(adapter):
        pace(clock, 200 * MEGABYTE, 1e9)
        adapter_came = torch.cuda.Event()  # type: ignore[no-untyped-call]
        adapter_came.record()
    with torch.cuda.stream(activations):
        pace(clock, MEGABYTE, 1e9)
        activations.synchronize()
    assert not adapter_came.query()
    torch.cuda.synchronize()
