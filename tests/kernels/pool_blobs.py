"""Adapters' blobs for the tests of the pooled kernels, which know nothing of the program that packs them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from caraserve_kernels.lora_layout import AdapterLayout, ModuleKey


def write_blob(
    blob: Tensor, layout: AdapterLayout, weights: Mapping[ModuleKey, tuple[Tensor, Tensor, Tensor | None]]
) -> None:
    """Fill an adapter's extent of the pool, or of the host's copy of it; what is padding becomes zero.

    Args:
        blob: [layout.num_elements].
        layout: where the pieces go.
        weights: for each module A [lora_rank, in], B rows [lora_rank, out], and its bias [out] or None.
    """
    blob.zero_()
    for key, piece in layout.pieces.items():
        a, b_rows, bias = weights[key]
        blob[piece.a_offset :][: a.numel()].copy_(a.reshape(-1))
        blob[piece.b_offset :][: b_rows.numel()].copy_(b_rows.reshape(-1))
        if bias is not None:
            blob[piece.bias_offset :][: bias.numel()].copy_(bias)
