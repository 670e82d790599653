"""The exchange on a GPU: pinned memory, processes that answer, answer late, or never do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from caraserve_kernels import host_exchange_kernels as module
from caraserve_kernels.host_exchange import add_rows, send_rows
from caraserve_kernels.linear import linear
from caraserve_kernels.rms_norm import add_rms_norm
from tests.kernels.exchange_workers import Op, SharedRows, expected_sum, op_words

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

WIDTH, FUSED_WIDTH, MOST_ROWS = 4096, 12288, 300
# No answer takes so long; a test that waits for it has failed.
NEVER_LATE_MS = 20_000.0
# cudaHostRegisterPortable and cudaHostRegisterMapped.
MAPPED = 3


def pinned(dtype: torch.dtype) -> Iterator[SharedRows]:
    shared = SharedRows(MOST_ROWS * FUSED_WIDTH, dtype)
    first_byte = shared.exchange.sent.data_ptr()
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    assert int(runtime.cudaHostRegister(first_byte, len(shared.memory), MAPPED)) == 0
    yield shared
    torch.cuda.synchronize()
    assert int(runtime.cudaHostUnregister(first_byte)) == 0


@pytest.fixture(params=[torch.bfloat16, torch.float16, torch.float32], ids=str)
def shared(request: pytest.FixtureRequest) -> Iterator[SharedRows]:
    yield from pinned(request.param)


@pytest.fixture
def shared_bfloat16() -> Iterator[SharedRows]:
    yield from pinned(torch.bfloat16)


@pytest.fixture
def shared_float32() -> Iterator[SharedRows]:
    yield from pinned(torch.float32)


def never_late(op: Op, workers: int) -> torch.Tensor:
    """What the device is told of an op of a step that began with number 1."""
    return op_words(
        op.number, op.num_rows, first_number=1, workers=workers, late_ms=NEVER_LATE_MS, device="cuda"
    )


def counter_is_clear() -> bool:
    device = torch.device("cuda", torch.cuda.current_device())
    return int(module._device_words(device)[0]) == 0


@pytest.mark.parametrize("on_two_streams", [False, True], ids=["one-stream", "two-streams"])
def test_all_rows_come_back_though_nothing_waits_for_the_host(
    shared: SharedRows, on_two_streams: bool
) -> None:
    dtype = shared.exchange.x.dtype
    # Odd widths are read and written element by element.
    shapes = [(1, 64, 192), (17, WIDTH, FUSED_WIDTH), (300, 1000, 3000), (128, 37, 101), (5, 11008, WIDTH)]
    ops = [Op(number, *shapes[number % len(shapes)]) for number in range(1, 201)]
    xs = [torch.randn(op.num_rows, op.in_width + 16, device="cuda").to(dtype)[:, 16:] for op in ops]
    ys = [torch.randn(op.num_rows, op.out_width + 16, device="cuda").to(dtype)[:, :-16] for op in ops]
    expected = [expected_sum(x, y) for x, y in zip(xs, ys, strict=True)]
    sending = torch.cuda.current_stream()
    if on_two_streams:
        sending = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    with shared.workers([0, 3, 40, 63], ops) as workers:
        tellings = [never_late(op, workers) for op in ops]
        for x, y, told in zip(xs, ys, tellings, strict=True):
            sending.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(sending):
                send_rows(x, shared.exchange, told)
            add_rows(y, shared.exchange, told)
        torch.cuda.synchronize()
    assert shared.exchange.failed.tolist() == [0]
    for op, y, y_expected in zip(ops, ys, expected, strict=True):
        assert torch.equal(y, y_expected), op
    assert counter_is_clear()


def test_a_late_worker_fails_its_step_and_no_other(shared_float32: SharedRows) -> None:
    exchange, silent = shared_float32.exchange, frozenset({1})
    ops = [Op(1, 40, WIDTH, FUSED_WIDTH)]
    ops += [Op(number, 40, WIDTH, FUSED_WIDTH, silent) for number in (2, 3)]
    ops += [Op(number, 40, WIDTH, FUSED_WIDTH) for number in (4, 5)]
    ys = [torch.zeros(40, FUSED_WIDTH, device="cuda") for _ in ops]
    failed: list[int] = []
    with shared_float32.workers([0, 1], ops) as workers:
        # Three ops and two.
        for op, y in zip(ops, ys, strict=True):
            first_number = 1 if op.number <= 3 else 4
            late_ms = 50.0 if op.number == 2 else NEVER_LATE_MS
            told = op_words(
                op.number, 40, first_number=first_number, workers=workers, late_ms=late_ms, device="cuda"
            )
            send_rows(torch.full((40, WIDTH), float(op.number), device="cuda"), exchange, told)
            add_rows(y, exchange, told)
            if op.number in (3, 5):
                torch.cuda.synchronize()
                failed.append(int(exchange.failed))
    assert failed == [2, 2]
    assert [set(y.flatten().tolist()) for y in ys] == [{1.0}, {0.0}, {0.0}, {4.0}, {5.0}]
    assert counter_is_clear()


def test_it_ends_when_nobody_answers(shared_float32: SharedRows) -> None:
    exchange = shared_float32.exchange
    x, y = torch.ones(MOST_ROWS, WIDTH, device="cuda"), torch.ones(MOST_ROWS, FUSED_WIDTH, device="cuda")
    for number in range(1, 65):
        # A step each: every one waits.
        told = op_words(number, MOST_ROWS, late_ms=2.0, device="cuda")
        send_rows(x, exchange, told)
        add_rows(y, exchange, told)
    torch.cuda.synchronize()
    assert exchange.sent.tolist() == [64]
    assert exchange.failed.tolist() == [64]
    assert torch.equal(exchange.x[: x.numel()].view(x.shape), x.cpu())
    assert (y == 1).all()
    assert counter_is_clear()


def test_a_step_given_up_by_the_host_is_not_waited_for(shared_float32: SharedRows) -> None:
    exchange, y = shared_float32.exchange, torch.ones(4, WIDTH, device="cuda")
    exchange.failed[0] = 8
    add_rows(y, exchange, op_words(6, 4, first_number=5, late_ms=NEVER_LATE_MS, device="cuda"))
    torch.cuda.synchronize()
    assert exchange.failed.tolist() == [8]
    assert (y == 1).all()


def test_neither_kernel_is_compiled_for_an_op(shared_float32: SharedRows) -> None:
    """Numbers, masks, times and rows of every kind: 1, multiples of 16, and others."""
    exchange = shared_float32.exchange
    exchange.done.fill_(2**31 - 1)

    def run(num_rows: int, number: int, workers: int, late_ms: float) -> None:
        told = op_words(number, num_rows, workers=workers, late_ms=late_ms, device="cuda")
        send_rows(torch.zeros(num_rows, WIDTH, device="cuda"), exchange, told)
        add_rows(torch.zeros(num_rows, WIDTH, device="cuda"), exchange, told)

    def num_compiled() -> int:
        return sum(
            len(kernel.device_caches[torch.cuda.current_device()][0])
            for kernel in (module._send_kernel, module._add_kernel)
        )

    run(3, 5, 0b1, 20.0)
    before = num_compiled()
    for num_rows, number, workers, late_ms in [
        (1, 1, 1 << 63, 0.001),
        (16, 16, (1 << 64) - 1, 16.0),
        (300, 2**31 - 1, 1 << 31, 60_000.0),
        (32, 32, 1 << 32, 1.6),
    ]:
        run(num_rows, number, workers, late_ms)
    torch.cuda.synchronize()
    assert num_compiled() == before


def test_between_kernels_that_start_early(shared_bfloat16: SharedRows) -> None:
    """Norm and product start before the kernel in front of them has ended: not before these have."""
    exchange = shared_bfloat16.exchange
    ops = [Op(number, 8, WIDTH, WIDTH) for number in range(1, 61)]
    weight = torch.empty(WIDTH, WIDTH, dtype=torch.bfloat16, device="cuda").normal_(std=0.02)
    norm = torch.ones(WIDTH, dtype=torch.bfloat16, device="cuda")
    first = torch.randn(8, WIDTH, device="cuda").bfloat16()

    expected = first
    for _ in ops:
        x = add_rms_norm(expected, None, norm, 1e-6)
        y = linear(x, weight)
        torch.cuda.synchronize()
        expected = expected_sum(x, y)
    actual = first
    with shared_bfloat16.workers([0, 1], ops) as workers:
        for told in [never_late(op, workers) for op in ops]:
            x = add_rms_norm(actual, None, norm, 1e-6)
            send_rows(x, exchange, told)
            actual = linear(x, weight)
            add_rows(actual, exchange, told)
        torch.cuda.synchronize()
    assert exchange.failed.tolist() == [0]
    assert torch.equal(actual, expected)
