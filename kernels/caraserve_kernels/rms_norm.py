"""The residual stream's addition and its root mean square norm, read once.

Semantics, for token t, in x's dtype unless stated:

    hidden[t] += delta[t]                                       in place, rounded, if there is a delta
    scale      = 1 / sqrt(mean(hidden[t] ** 2) + eps)           in float32
    out[t, k]  = round(hidden[t, k] * scale) * weight[k]

which is the rounding of transformers' LlamaRMSNorm and of its residual stream.

- hidden [tokens, hidden_size]  bfloat16, float16 or float32; rows may be strided, columns may not; changed
- delta  [tokens, hidden_size]  the same, or None
- weight [hidden_size]          the same dtype
- out    [tokens, hidden_size]  the same dtype, contiguous

Zhang and Sennrich 2019, "Root Mean Square Layer Normalization". The fusion with the addition is vLLM's and
Liger's: unfused, a row is read and written once more.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from caraserve_kernels.linear import can_overlap

# A thread's share of a row: one 16-byte read in bfloat16, so that a short row costs one round trip to memory.
# H200, 4,096 columns, 8 / 16 / 32, µs: one token 2.7 / 3.2 / 3.0, 2,048 tokens 17.8 / 17.9 / 17.6; torch 5.7,
# 24.2.
_COLUMNS_PER_THREAD = 8
_MAX_WARPS = 16


def add_rms_norm(hidden: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """`hidden += delta` in place, then the weighted norm of `hidden`: [T, hidden_size], new."""
    if hidden.is_cuda:
        out = torch.empty(hidden.shape, dtype=hidden.dtype, device=hidden.device)
        launch_add_rms_norm(hidden, delta, weight, eps, out)
        return out
    if delta is not None:
        hidden.add_(delta)
    return F.rms_norm(hidden, weight.shape, weight, eps)


def add_rms_norm_reference(
    hidden: Tensor, delta: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The new `hidden` (rounded, as what follows reads it so) and the norm in float32, not rounded."""
    stream = hidden if delta is None else (hidden.float() + delta.float()).to(hidden.dtype)
    wide = stream.float()
    scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return stream, wide * scale * weight.float()


def launch_add_rms_norm(
    hidden: Tensor, delta: Tensor | None, weight: Tensor, eps: float, out: Tensor
) -> None:
    """Run the Triton kernel; `out` [tokens, hidden_size] is overwritten, with a delta `hidden` changes."""
    num_tokens, hidden_size = hidden.shape
    columns = triton.next_power_of_2(hidden_size)
    overlap = can_overlap(hidden.device)
    delta_stride = 0 if delta is None else delta.stride(0)
    _add_rms_norm_kernel[(num_tokens,)](
        hidden, delta, weight, out, hidden_size, hidden.stride(0), delta_stride, eps,
        block_columns=columns, overlap=overlap,
        num_warps=num_warps_for(columns), **({"launch_pdl": True} if overlap else {}),
    )  # fmt: skip


def num_warps_for(columns: int) -> int:
    """Warps that share a row of `columns`, a power of two."""
    return min(_MAX_WARPS, max(1, columns // (32 * _COLUMNS_PER_THREAD)))


@triton.jit  # type: ignore[untyped-decorator]
def _add_rms_norm_kernel(  # type: ignore[no-untyped-def]
    hidden_ptr, delta_ptr, weight_ptr, out_ptr, hidden_size, hidden_stride, delta_stride, eps,
    block_columns: tl.constexpr, overlap: tl.constexpr,
):  # fmt: skip
    if overlap:
        gdc_launch_dependents()
        gdc_wait()
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, block_columns)
    inside = columns < hidden_size
    stream_ptr = hidden_ptr + token * hidden_stride
    stream = tl.load(stream_ptr + columns, mask=inside, other=0.0)
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0)
    if delta_ptr is not None:
        delta = tl.load(delta_ptr + token * delta_stride + columns, mask=inside, other=0.0)
        stream = (stream.to(tl.float32) + delta.to(tl.float32)).to(stream.dtype)
        tl.store(stream_ptr + columns, stream, mask=inside)
    wide = stream.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, axis=0) / hidden_size + eps)
    normalised = (wide * scale).to(stream.dtype).to(tl.float32)
    out = (normalised * weight.to(tl.float32)).to(stream.dtype)
    tl.store(out_ptr + token * hidden_size + columns, out, mask=inside)
