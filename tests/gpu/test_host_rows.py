"""Words that a GPU reads from pinned memory itself, in the order of its stream."""

from __future__ import annotations

import pytest
import torch

from caraserve_kernels.host_rows import HostWords

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

# Of the GPU's clock: tens of milliseconds, in which the host is long done.
SLEEP_CYCLES = 50_000_000


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (1, 200_000), (256, 13), (7, 1), (3, 4096)])
def test_rows_come_to_where_they_belong(shape: tuple[int, int]) -> None:
    rows, columns = shape
    written = HostWords(rows * columns + 5, torch.device("cuda"))
    wide = torch.full((rows + 1, columns + 3), -1, dtype=torch.int32, device="cuda")
    expected = torch.randint(-(2**31), 2**31, shape).to(torch.int32)
    written.begin()[: expected.numel()] = expected.view(-1)
    written.read_to(wide[:rows, :columns])
    assert torch.equal(wide[:rows, :columns].cpu(), expected)
    wide[:rows, :columns] = -1
    assert wide.eq(-1).all(), "nothing beside them is written"


def test_what_is_written_down_waits_for_what_is_not_read() -> None:
    """Five steps' words behind a busy GPU: each arrives, though there are two buffers."""
    written = HostWords(1000, torch.device("cuda"))
    targets = torch.zeros(5, 1, 1000, dtype=torch.int32, device="cuda")
    for number, target in enumerate(targets, 1):
        torch.cuda._sleep(SLEEP_CYCLES)  # type: ignore[no-untyped-call]
        written.begin()[:] = number
        written.read_to(target)
    assert [target.unique().tolist() for target in targets] == [[1], [2], [3], [4], [5]]


def test_copies_to_the_device_are_not_waited_for() -> None:
    """Behind a copy that waits for a busy stream, on another stream: read while that one still sleeps."""
    asleep, awake = torch.cuda.Stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    written = HostWords(1000, torch.device("cuda"))
    target = torch.zeros(1, 1000, dtype=torch.int32, device="cuda")
    written.begin()[:] = 1
    written.read_to(target)  # compiled
    pinned = torch.zeros(2**20, pin_memory=True)
    copied = torch.empty(2**20, device="cuda")
    torch.cuda.synchronize()
    slept = torch.cuda.Event()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(asleep):
        torch.cuda._sleep(20 * SLEEP_CYCLES)  # type: ignore[no-untyped-call]
        copied.copy_(pinned, non_blocking=True)
        slept.record()
    with torch.cuda.stream(awake):
        written.begin()[:] = 2
        written.read_to(target)
    awake.synchronize()
    assert not slept.query(), "the copy is not over"  # type: ignore[no-untyped-call]
    assert target.eq(2).all()
