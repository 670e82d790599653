"""The exchange's kernels in Triton's interpreter; run by test_host_exchange.py in a process of its own.

What the interpreter lacks is inline assembly: polling and the flag's store are replaced by plain loads and
stores here, compiled for Hopper there, and run on a GPU in tests/gpu.
"""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from caraserve_kernels import host_exchange_kernels as module
from caraserve_kernels.host_exchange import OP_WORDS
from caraserve_kernels.host_exchange_kernels import launch_add_rows, launch_send_rows
from tests.kernels.exchange_workers import op_words

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# The interpreter cuts float32 to bfloat16 without rounding.
ROUNDED_DTYPES = [torch.float32, torch.float16]
# Rows and widths: less than a tile, ragged tiles, more tiles than programs.
SHAPES = [(1, 24), (3, 100), (2, 4096), (5, 11008), (40, 64)]


@triton.jit
def _store_word(word_ptr, number):  # type: ignore[no-untyped-def]
    tl.store(word_ptr, number)


@triton.jit
def _look_once(done_ptr, failed_ptr, number, first_number, low_mask, high_mask, late_us):  # type: ignore[no-untyped-def]
    workers = tl.arange(0, 64)
    concerned = (tl.where(workers < 32, low_mask, high_mask) >> (workers & 31)) & 1
    behind = tl.sum(tl.where(tl.load(done_ptr + workers) < number, concerned, 0))
    return tl.where(tl.load(failed_ptr) >= first_number, 3, tl.where(behind > 0, 2, 1))


@pytest.fixture(autouse=True)
def interpretable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_raise_word", _store_word)
    monkeypatch.setattr(module, "_poll", _look_once)


def strided_rows(num_rows: int, width: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(num_rows * width)
    return torch.randn(num_rows, width + 8, generator=generator).to(dtype)[:, 8:]


def words(length: int) -> Tensor:
    return torch.zeros(length, dtype=torch.int32)


@pytest.mark.parametrize(("num_rows", "width"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_send(dtype: torch.dtype, num_rows: int, width: int) -> None:
    x, sent = strided_rows(num_rows, width, dtype), words(1)
    x_out = torch.full((num_rows * width + 16,), -7.0, dtype=dtype)
    launch_send_rows(x, x_out, sent, op_words(5, num_rows))
    assert torch.equal(x_out[:-16].view(num_rows, width), x)
    assert (x_out[-16:] == -7).all(), "wrote past the rows"
    assert sent.tolist() == [5]
    assert module._device_words(x.device)[0] == 0


@pytest.mark.parametrize(("num_rows", "width"), SHAPES)
@pytest.mark.parametrize("dtype", ROUNDED_DTYPES, ids=str)
def test_add(dtype: torch.dtype, num_rows: int, width: int) -> None:
    y, result = strided_rows(num_rows, width, dtype), strided_rows(num_rows, width, dtype).contiguous() * 3
    whole = y._base
    assert whole is not None
    before = whole.clone()
    done, failed = words(64), words(1)
    done[40], done[31] = 9, 10
    told = op_words(9, num_rows, first_number=4, workers=1 << 40 | 1 << 31)
    launch_add_rows(y, result.flatten(), done, failed, told)
    expected = (before[:, 8:].float() + result.float()).to(dtype)
    assert torch.equal(y, expected)
    assert torch.equal(whole[:, :8], before[:, :8]), "wrote beside the rows"
    assert failed.tolist() == [0]


@pytest.mark.parametrize(("failed_before", "failed_after"), [(0, 9), (3, 9), (4, 4), (8, 8)])
def test_nothing_is_added_when_a_worker_is_late_or_the_step_has_failed(
    failed_before: int, failed_after: int
) -> None:
    y = strided_rows(40, 64, torch.float32)
    before = y.clone()
    done, failed = words(64), words(1)
    done[0], done[1], failed[0] = 9, 8, failed_before
    launch_add_rows(y, torch.ones(40 * 64), done, failed, op_words(9, 40, first_number=4, workers=0b11))
    assert torch.equal(y, before)
    assert failed.tolist() == [failed_after]
    done[:2] = 12
    launch_add_rows(y, torch.ones(40 * 64), done, failed, op_words(12, 40, first_number=10, workers=0b11))
    assert torch.equal(y, before + 1), "the next step's ops are added again"


@pytest.mark.parametrize("num_rows", [0, 3, 40])
def test_only_the_rows_of_the_op(num_rows: int) -> None:
    """Of a batch of 40; no rows are no op."""
    told = op_words(5, num_rows) if num_rows else words(OP_WORDS)
    x, y, done, sent = torch.ones(40, 64), torch.zeros(40, 64), words(64), words(1)
    done[0], x_out = 5, torch.full((40, 64), -1.0)
    launch_send_rows(x, x_out.flatten(), sent, told)
    launch_add_rows(y, torch.ones(40 * 64), done, words(1), told)
    expected = torch.tensor([1.0] * num_rows + [0.0] * (40 - num_rows))
    assert torch.equal(y, expected[:, None].expand(40, 64))
    assert torch.equal(x_out, 2 * expected[:, None].expand(40, 64) - 1)
    assert sent.tolist() == [5 if num_rows else 0]
    assert module._device_words(y.device)[0] == 0
