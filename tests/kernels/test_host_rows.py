"""Rows read from the host: dispatch here, the kernel in Triton's interpreter, compiled for Hopper."""

from __future__ import annotations

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget

from caraserve_kernels import host_rows as module
from caraserve_kernels.host_rows import HostWords, read_host_rows
from tests.kernels.interpreter import run_interpreted


def words(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int32)


def test_kernel_in_the_interpreter() -> None:
    run_interpreted("cases_host_rows.py")


def test_on_the_cpu_it_is_a_copy() -> None:
    source = torch.arange(6, dtype=torch.int32).view(2, 3)
    target = torch.zeros(4, 5, dtype=torch.int32)
    read_host_rows(target[1:3, :3], source)
    assert target.tolist() == [[0] * 5, [0, 1, 2, 0, 0], [3, 4, 5, 0, 0], [0] * 5]
    read_host_rows(target[:0], source[:0].new_zeros(0, 5))


def test_two_buffers_take_turns() -> None:
    written = HostWords(6, torch.device("cpu"))
    targets = [words(2, 2), words(1, 3), words(3, 1)]
    buffers = []
    for number, target in enumerate(targets, 1):
        buffers.append(written.begin())
        buffers[-1][:] = number
        written.read_to(target)
    assert [target.unique().tolist() for target in targets] == [[1], [2], [3]]
    assert buffers[0] is buffers[2]
    assert buffers[0] is not buffers[1]


def test_what_lies_apart_is_read_by_itself() -> None:
    written = HostWords(11, torch.device("cpu"))
    written.begin()[:] = torch.arange(11)
    front, back = words(1, 2), words(1, 3)
    written.read_to(front)
    written.read_to(back, first=8)
    assert (front.tolist(), back.tolist()) == ([[0, 1]], [[8, 9, 10]])


@pytest.mark.parametrize(
    ("target", "source", "said"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int32), "int32"),
        (
            torch.zeros(2, 3, dtype=torch.int32),
            torch.zeros(3, 2, dtype=torch.int32),
            r"\(3, 2\) for \(2, 3\)",
        ),
        (torch.zeros(6, dtype=torch.int32), torch.zeros(6, dtype=torch.int32), r"\(6,\)"),
        (torch.zeros(2, 3, dtype=torch.int32), torch.zeros(3, 2, dtype=torch.int32).T, "contiguous"),
        (torch.zeros(3, 2, dtype=torch.int32).T, torch.zeros(2, 3, dtype=torch.int32), "side by side"),
    ],
)
def test_others_are_refused(target: torch.Tensor, source: torch.Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_host_rows(target, source)


def test_compiles_for_hopper() -> None:
    signature = {
        "source_ptr": "*i32",
        "target_ptr": "*i32",
        "num_words": "i32",
        "columns": "i32",
        "target_stride": "i32",
    }
    constants = {"block_words": module._BLOCK_WORDS, "quad_words": module.QUAD_WORDS}
    # As it is launched: both begin with a quad.
    attrs = {(index,): [["tt.divisibility", 16]] for index in range(2)}
    source = triton.compiler.ASTSource(
        module._read_kernel, signature | dict.fromkeys(constants, "constexpr"), constants, attrs
    )
    compiled = triton.compile(
        source, target=GPUTarget("cuda", 90, 32), options={"num_warps": module._NUM_WARPS}
    )
    ptx = compiled.asm["ptx"]
    assert "ld.volatile.global.v4" in ptx
    assert "ld.global" not in ptx, "every word of the host is read anew"
