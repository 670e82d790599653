"""How long CPU workers take for the LoRA part of a layer, op by op."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from caraserve_cli.perf.adapter_ops import AdapterOp
from caraserve_cli.perf.cpu_lora import CpuLoraModel, CpuLoraOp
from caraserve_cli.perf.op_cut import OpCut


def cpu_ops_ms(
    model: CpuLoraModel,
    ops: Sequence[AdapterOp],
    num_tokens: int,
    lora_rank: int,
    num_workers: int,
    tokens_per_worker: int,
) -> tuple[float, ...]:
    """Milliseconds of each op, cut among workers as they would cut it; all numbers are above 0.

    Args:
        model: of an op.
        ops: of a layer.
        num_tokens: of the prompt, in one step.
        lora_rank: of the adapter.
        num_workers: that are free.
        tokens_per_worker: from which another worker computes further tokens.
    """
    return tuple(
        model.predict_ms(_cut_op(op, num_tokens, lora_rank, num_workers, tokens_per_worker)) for op in ops
    )


# A decision about one arrival asks for each op several times. With what is kept here and in `cpu_lora` it
# takes 0.05 to 0.16 ms in place of 0.15 to 0.29 (2 cores of an Intel Xeon).
@lru_cache(maxsize=1024)
def _cut_op(
    op: AdapterOp, num_tokens: int, lora_rank: int, num_workers: int, tokens_per_worker: int
) -> CpuLoraOp:
    cut = OpCut.of(num_tokens, len(op.out_widths), num_workers, tokens_per_worker, lora_rank)
    return CpuLoraOp(
        num_tokens,
        op.in_width,
        op.out_widths,
        lora_rank,
        cut.num_shares,
        tokens_per_worker,
        op.group_out_width,
    )
