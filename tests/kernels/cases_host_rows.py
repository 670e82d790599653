"""Triton's interpreter against plain copies; run by test_host_rows.py in a process of its own."""

from __future__ import annotations

import pytest
import torch

from caraserve_kernels.host_rows import launch_read_host_rows


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 5000), (1, 200_000), (3, 7), (256, 13)])
def test_kernel(rows: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(rows * columns)
    padded = torch.randint(-(2**31), 2**31, (rows * columns + 3,), generator=generator).to(torch.int32)
    source = padded[: rows * columns].view(rows, columns)
    wide = torch.full((rows + 1, columns + 3), 7, dtype=torch.int32)
    launch_read_host_rows(wide[:rows, :columns], source)
    assert torch.equal(wide[:rows, :columns], source)
    wide[:rows, :columns] = 7
    assert wide.eq(7).all(), "nothing beside them is written"


def test_memory_of_half_a_quad_is_refused() -> None:
    target, words = torch.zeros(1, 3, dtype=torch.int32), torch.zeros(8, dtype=torch.int32)
    for source in (words[1:4], words[6:8], words[:6].clone()[4:6]):
        with pytest.raises(ValueError, match="whole bytes"):
            launch_read_host_rows(target[:, : source.numel()], source[None])
    launch_read_host_rows(target, words[4:7][None])
