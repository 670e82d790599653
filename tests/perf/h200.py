"""A profile of the machine in hardware.md, one H200 with Llama-2-7B in bfloat16, fitted from its points.

No round trip was measured there: the arithmetic on the CPU was, and rows on their way. Their sums stand for
round trips here; true ones take longer.
"""

from __future__ import annotations

from caraserve_cli.core import BaseShape
from caraserve_cli.perf.cpu_lora import CpuLoraModel, CpuLoraOp
from caraserve_cli.perf.decode import DecodeModel
from caraserve_cli.perf.link import LinkModel
from caraserve_cli.perf.lora_kernels import LoraKernelModel
from caraserve_cli.perf.prefill import PrefillModel
from caraserve_cli.perf.profile import MachineProfile, MeasuredOn

LLAMA2_7B = BaseShape(
    num_layers=32,
    hidden_size=4096,
    num_heads=32,
    num_kv_heads=32,
    head_dim=128,
    intermediate_size=11008,
    vocab_size=32000,
)
_QKV = (4096, 4096, 4096)
_DTYPE_BYTES = 2

# Pinned copies to the device: bytes, milliseconds.
LINK_POINTS = {64 * 2**10: 0.022, 2**20: 0.030, 4 * 2**20: 0.088, 32 * 2**20: 0.625, 2**27: 2.572}
# x of 128 tokens × 4096 down, q, k, v parts back; and the signals alone.
EXCHANGE_POINTS = {0: 0.0057, 4 * 2**20: 0.124}
# The GEMMs of a layer, by tokens, in milliseconds.
LAYER_POINTS = {1: 0.114, 8: 0.116, 32: 0.117, 128: 0.126, 512: 0.295, 2048: 1.258}
# q + k + v of one layer: (tokens, LoRA rank) -> milliseconds with 1, 4, 8 and 15 threads.
CPU_POINTS = {
    (16, 8): (0.29, 0.15, 0.13, 0.13),
    (16, 64): (0.43, 0.18, 0.15, 0.16),
    (32, 64): (0.50, 0.25, 0.21, 0.18),
    (128, 8): (0.72, 0.33, 0.24, 0.21),
    (128, 64): (1.20, 0.56, 0.35, 0.32),
    (128, 128): (1.68, 0.69, 0.47, 0.51),
}
CPU_THREADS = (1, 4, 8, 15)


def prefill_points() -> tuple[list[int], list[float]]:
    """Tokens, and milliseconds of a step of all layers."""
    return list(LAYER_POINTS), [32 * layer_ms for layer_ms in LAYER_POINTS.values()]


def cpu_points() -> tuple[list[CpuLoraOp], list[float]]:
    """Ops and their milliseconds."""
    ops, times_ms = [], []
    for (num_tokens, lora_rank), of_threads in CPU_POINTS.items():
        for num_threads, time_ms in zip(CPU_THREADS, of_threads, strict=True):
            ops.append(CpuLoraOp(num_tokens, 4096, _QKV, lora_rank, num_threads))
            times_ms.append(time_ms)
    return ops, times_ms


def round_trip_points() -> tuple[list[CpuLoraOp], list[float]]:
    """The same ops with their rows' way there and back: x once, the results of all three modules."""
    ops, times_ms = cpu_points()
    exchange = LinkModel.fit("exchange", list(EXCHANGE_POINTS), list(EXCHANGE_POINTS.values()))
    exchanges_ms = [exchange.copy_ms(_DTYPE_BYTES * op.exchanged_elements) for op in ops]
    return ops, [sum(each) for each in zip(times_ms, exchanges_ms, strict=True)]


def adapter_bytes(lora_rank: int) -> int:
    """An adapter of Llama-2-7B on q, k, v, o, in bfloat16."""
    return 32 * 4 * 2 * 4096 * lora_rank * 2


def h200_profile() -> MachineProfile:
    """All models."""
    cpu_lora = CpuLoraModel.fit(*round_trip_points())
    tokens, steps_ms = prefill_points()
    batches = [(8, 8), (8, 64), (64, 64), (16, 16, 16, 16)]
    return MachineProfile(
        measured_on=MeasuredOn(
            device="NVIDIA H200",
            num_cores=16,
            torch_version="2.11.0+cu130",
            measured_at="2026-11-23T12:00:00+00:00",
            commit=None,
        ),
        base="llama2-7b",
        dtype="bfloat16",
        shape=LLAMA2_7B,
        link=LinkModel.fit("link", list(LINK_POINTS), list(LINK_POINTS.values())),
        exchange=LinkModel.fit("exchange", list(EXCHANGE_POINTS), list(EXCHANGE_POINTS.values())),
        prefill=PrefillModel.fit(tokens, steps_ms),
        decode=DecodeModel.fit([1, 8, 32, 128], [4.0, 4.4, 5.2, 8.0]),
        cpu_lora=cpu_lora,
        tokens_per_worker=16,
        unpadded_kernel=LoraKernelModel.fit(
            batches, [0.001 * sum(each) + 0.2 for each in batches], is_padded=False
        ),
    )
