"""Captured work keeps what its graph reads and writes, on a GPU."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from caraserve_cli.bench.kernel_timer import KernelTimer
from caraserve_cli.fleet.device_timer import MIN_LAUNCHES, Work

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

# Larger than what the allocator puts together with others: freed, it would go back to the device.
NUM_ELEMENTS = 8 * 2**20


class Doubling:
    """A launch on a buffer that nobody else holds."""

    def __init__(self, device: torch.device, out: torch.Tensor) -> None:
        self.source = torch.arange(NUM_ELEMENTS, dtype=torch.float32, device=device)
        self.out = out

    def __call__(self) -> None:
        # With an intermediate that lives in the graph's own memory.
        self.out.copy_(self.source * 2)


def capture_alone(
    timer: KernelTimer, device: torch.device, out: torch.Tensor
) -> tuple[Work, weakref.ref[Doubling]]:
    launch = Doubling(device, out)
    return timer.capture([launch], 1), weakref.ref(launch)


def test_a_graph_replays_on_buffers_that_only_its_work_holds() -> None:
    device = torch.device("cuda")
    timer = KernelTimer(device, repeats=3)
    out = torch.zeros(NUM_ELEMENTS, device=device)
    work, launch = capture_alone(timer, device, out)
    assert work.captured
    gc.collect()
    torch.cuda.empty_cache()
    # As many buffers of the same size as would lie wherever the first was.
    others = [torch.full((NUM_ELEMENTS,), -1.0, device=device) for _ in range(16)]
    out.fill_(torch.nan)
    work.run()
    torch.cuda.synchronize()
    assert torch.equal(out, 2 * torch.arange(NUM_ELEMENTS, dtype=torch.float32, device=device))
    assert all(bool((other == -1).all()) for other in others)
    assert launch() is not None
    del work
    gc.collect()
    assert launch() is None


def test_repeats_and_launches_are_counted() -> None:
    device = torch.device("cuda")
    timer = KernelTimer(device, repeats=3)
    buffers = [torch.zeros(NUM_ELEMENTS, device=device) for _ in range(3)]
    work = timer.rotate([lambda buffer=buffer: buffer.add_(1) for buffer in buffers])  # type: ignore[misc]
    each = -(-MIN_LAUNCHES // len(buffers))
    assert (work.divide_by, work.captured) == (each * len(buffers), True)
    times = timer.time_us({"add": work})["add"]
    assert len(times.values) == 3
    assert times.lowest > 0
    # Once before the capture, once that is not measured, and the repeats.
    assert [float(buffer[-1]) for buffer in buffers] == [each * (1 + 1 + 3)] * 3
