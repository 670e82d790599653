"""y += LoRA(x) on the GPU, for adapters of mixed ranks in one flat device pool.

*Semantics*, for each token t that has an adapter g(t), in one layer, for each module m of a fused group:

    h[t, m]          = x[t] @ A[g(t), m].T                          (shrink, accumulated in float32)
    y[t, columns(m)] += h[t, m] @ B[g(t), m] + bias[g(t), m]   (expand, rounded once)

Shapes: x [tokens, in], y [tokens, sum of out], both of the pool's dtype; A [lora_rank, in] and B [lora_rank,
out] in the pool, see `lora_layout`; h float32 [splits, max_tokens, modules, max_rank], scratch. Tokens
without an adapter are in no tile: they cost nothing and are not touched.

Both kernels run a fixed number of programs, which share out the tiles of the step's work lists; what is in
the lists, and how long they are, is read on the device, so one CUDA graph of a group's kernels serves every
set of adapters and ranks. Nothing is padded: a tile reads the rows that the adapter has in this layer. The
padded form (`bgmv`) is the same kernels on a padded layout and lists that cover the batch's largest rank
(Punica, arXiv 2310.18547; the unpadded form is S-LoRA's MBGMV, arXiv 2311.03285). Each element of h and y is
written by one program: no atomics, equal results in every run.

With one token a tile (decode, adapters mostly distinct) the kernels multiply and sum: every weight is used
once, so memory bandwidth is all there is to gain. With 16 or more they use tensor cores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import triton
from torch import Tensor

from caraserve_kernels import lora_layout, lora_work
from caraserve_kernels.linear import is_streamed
from caraserve_kernels.lora_layout import FusedGroup
from caraserve_kernels.lora_linear import LoraPart, add_lora_reference
from caraserve_kernels.lora_pool_kernels import expand_kernel, shrink_kernel
from caraserve_kernels.lora_work import Tiling

# The smallest side of a tensor core product that every Triton version takes.
MIN_DOT_BLOCK = 16


@dataclass(frozen=True, slots=True)
class ShrinkConfig:
    """How the shrink kernel runs: A tiles of `block_rows` x `block_k`, the input width in `split_k` parts."""

    block_rows: int
    block_k: int
    split_k: int
    num_warps: int
    num_stages: int
    programs_per_sm: int


@dataclass(frozen=True, slots=True)
class ExpandConfig:
    """How the expand kernel runs: B tiles of `block_rank` x `block_cols`."""

    block_cols: int
    block_rank: int
    num_warps: int
    num_stages: int
    programs_per_sm: int


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """How a step is computed. Its work lists must be built with its `tiling`.

    `overlap`: programmatic dependent launch (Hopper and later): a kernel's programs take their places while
    the kernel before it ends, and read work, table and pool before it has. So these must be written by
    copies, or by a kernel that takes no part in it (`host_rows`): both are waited for; never by another
    kernel that is launched directly before.
    """

    block_tokens: int
    shrink: ShrinkConfig
    expand: ExpandConfig
    overlap: bool = False

    def __post_init__(self) -> None:
        smallest = min(self.block_tokens, self.shrink.block_rows, self.shrink.block_k, self.expand.block_rank)
        if self.block_tokens != 1 and smallest < MIN_DOT_BLOCK:
            raise ValueError(f"blocks of several tokens need {MIN_DOT_BLOCK} or more of everything: {self}")

    @property
    def tiling(self) -> Tiling:
        """How the step's work lists are to be cut."""
        return Tiling(self.block_tokens, self.shrink.block_rows)


# H200, Llama-2-7B's q, k, v, o in 32 layers, bfloat16, adapters of ranks 8/16/32/64. Shrink (rows x k,
# warps, stages, programs an SM), expand (columns x rank, warps, stages, programs).
# Shrink and expand alone, µs; 1 (rank 64) / 4 / 8 / 16 / 32 / 68 / 256 distinct adapters / 31 of rank
# 8 with 1 of rank 128. DECODE, (256 x 32, 1, 1, 8): 435 / 454 / 538 / 698 / 896 / 1,440 / 4,546 / 789, (128
# x 32, 1, 1, 16): 380 / 440 / 475 / 675 / 913 / 1,480 / 4,652 / 637, (256 x 32, 1, 1, 10): - / - / - / - /
# 968 / 1,481 / 5,150 / 773, (512 x 16, 2, 1, 8): 558 / 572 / 633 / 720 / 1,014 / 1,594 / 4,467 / 1,063.
# FEW, where wide tiles leave programs without work, (64 x 64, 1, 1, 12): 320 / 371 / 465 / 667 / 1,142 /
# 1,920 / 6,080 / 740, (64 x 64, 2, 1, 12): 317 / 390 / 485 / 699 / 1,329. Their bytes take 31 / 58 / 117 /
# 234 / 468 / 995 / 3,746 / 183.
# Shrink, the base's products around it, the step with LoRA less the same without, 16 / 32 / 68 adapters: (4
# x 1024, 4, 3, 4): 597 / 773 / 1,514, (2 x 1024, 2, 3, 8): 598 / 775 / 1,498, (4 x 512, 2, 3, 8): 603 / 803
# / 1,499, (4 x 1024, 4, 2, 5): 604 / 879 / 1,663.
# SHARED, several tokens an adapter, on tensor cores; 256 tokens of 128 / 64 / 32 adapters: 4,730 / 2,676 /
# 1,268, one by one (512 x 16, 4, 1, 5): 4,408 / 3,970 / 3,479.
# PREFILL, 8,192 tokens of 32 adapters, one layer's q, k, v: shrink (64 rows) 44, expand (128 x 32, 4 warps)
# 204, (8 warps) 333.
# CHUNK, where 64 tokens a tile make too few tiles. H100, q, k, v and o of one layer; a prompt of 16 /
# 128 / 512 / 1,024 / 2,048 tokens, rank 64: 22 / 26 / 60 / 98 / 191, as PREFILL 43 / 50 / 62 / 89 / 136, as
# SHARED 17 / 26 / 65 / 130 / 261. One or four prompts of 128 beside 36 and 32 that decode, of 22 adapters of
# ranks 8 to 128: 60 / 83, PREFILL 106 / 116, SHARED 62 / 94; 32 tokens a tile, (16 x 256, 4 parts), (128 x
# 32): 76 / 100; 64, (32 x 128, 4 parts), (128 x 32): 89 / 106. 8 / 16 prompts of 128: 87 / 179, PREFILL 92 /
# 142.
_DECODE_SHRINK = ShrinkConfig(4, 1024, 1, 4, 3, 4)
DECODE_CONFIG = LoraConfig(1, _DECODE_SHRINK, ExpandConfig(256, 32, 1, 1, 8))
FEW_CONFIG = LoraConfig(1, _DECODE_SHRINK, ExpandConfig(64, 64, 1, 1, 12))
SHARED_CONFIG = LoraConfig(16, ShrinkConfig(16, 256, 4, 4, 4, 4), ExpandConfig(128, 32, 4, 2, 8))
CHUNK_CONFIG = LoraConfig(16, ShrinkConfig(16, 256, 2, 4, 4, 4), ExpandConfig(256, 32, 4, 2, 6))
PREFILL_CONFIG = LoraConfig(64, ShrinkConfig(64, 128, 1, 4, 3, 3), ExpandConfig(128, 32, 4, 2, 2))


@dataclass(frozen=True, slots=True, eq=False)
class PooledLora:
    """The buffers that the kernels work on, at fixed addresses, and how they run.

    Attributes:
        groups: the fused groups, in the order of the table's third dimension.
        pool: [elements], of the run's dtype; the adapters' blobs.
        table: int64 [adapter slots, layers, groups, TABLE_FIELDS].
        work: int32 [capacity], what `build_work` wrote for this step.
        h: float32 [splits, max_tokens, most modules of a group, max_rank], scratch; max_rank is a
            multiple of 4, so that it can be read 16 bytes at a time.
        config: how the kernels run; `dataclasses.replace` gives the same buffers another.
        num_sms: multiprocessors of the device.
    """

    groups: tuple[FusedGroup, ...]
    pool: Tensor
    table: Tensor
    work: Tensor
    h: Tensor
    config: LoraConfig
    num_sms: int

    def __post_init__(self) -> None:
        if self.h.shape[0] < self.config.shrink.split_k:
            raise ValueError(f"h has {self.h.shape[0]} splits; {self.config.shrink.split_k} are used")
        if self.h.shape[3] % 4 or not self.h.is_contiguous():
            raise ValueError(f"h must be contiguous, its ranks a multiple of 4; got {self.h.shape}")

    def begin(self, layer: int, group: int, x: Tensor) -> bool:
        """Launch the shrink where the base's product with x can run beside it (`linear`'s `beside`); says
        whether it can. `add` must follow, with the same layer, group and x."""
        is_beside = self._runs_beside(x)
        if is_beside:
            shrink(self, layer, group, x)
        return is_beside

    def _runs_beside(self, x: Tensor) -> bool:
        # cuBLAS's products wait for all that is before them: a shrink after one of them starts in its tail.
        return self.config.overlap and is_streamed(x)

    def add(self, layer: int, group: int, x: Tensor, y: Tensor) -> None:
        """y += LoRA(x), in place, for the tokens in the work lists; after `begin`.

        Args:
            layer: the table's second index.
            group: the table's third index.
            x: [tokens, in], elements of a row side by side.
            y: [tokens, sum of out], elements of a row side by side.
        """
        if x.is_cuda:
            if not self._runs_beside(x):
                shrink(self, layer, group, x)
            expand(self, layer, group, y)
        else:
            y.copy_(add_pooled_reference(self, layer, group, x, y))


def shrink(lora: PooledLora, layer: int, group: int, x: Tensor) -> None:
    """Launch h = x A for one group of one layer."""
    config, shape = lora.config.shrink, lora.groups[group]
    num_tokens = _checked_tokens(lora, x, shape.in_width)
    most_rows = len(shape.modules) * lora.h.shape[3]
    most_tiles = num_tokens * (most_rows // config.block_rows + len(shape.modules)) * config.split_k
    shrink_kernel[(min(lora.num_sms * config.programs_per_sm, most_tiles),)](
        x,
        lora.h,
        lora.pool,
        lora.table,
        lora.work,
        _table_field(lora, layer, group),
        x.stride(0),
        LIST=lora_work.FIRST_SHRINK_LIST + 2 * group,
        SLOT_STRIDE=lora.table.stride(0),
        H_SPLIT_STRIDE=lora.h.stride(0),
        H_STRIDE=lora.h.stride(1),
        H_MODULE_STRIDE=lora.h.stride(2),
        IN_WIDTH=shape.in_width,
        NUM_MODULES=len(shape.modules),
        BLOCK_TOKENS=lora.config.block_tokens,
        BLOCK_ROWS=config.block_rows,
        BLOCK_K=min(config.block_k, max(MIN_DOT_BLOCK, triton.next_power_of_2(shape.in_width))),
        SPLIT_K=config.split_k,
        STAGES=config.num_stages,
        **_launch_options(lora, config.num_warps),
    )


def expand(lora: PooledLora, layer: int, group: int, y: Tensor) -> None:
    """Launch y += h B + bias for one group of one layer, after its `shrink`."""
    config, widths = lora.config.expand, lora.groups[group].out_widths
    num_tokens = _checked_tokens(lora, y, sum(widths))
    most_tiles = num_tokens * sum(-(-width // config.block_cols) for width in widths)
    width0, width1, width2 = (*widths, 0, 0)[: lora_layout.MAX_GROUP_MODULES]
    expand_kernel[(min(lora.num_sms * config.programs_per_sm, most_tiles),)](
        y,
        lora.h,
        lora.pool,
        lora.table,
        lora.work,
        _table_field(lora, layer, group),
        y.stride(0),
        SLOT_STRIDE=lora.table.stride(0),
        H_SPLIT_STRIDE=lora.h.stride(0),
        H_STRIDE=lora.h.stride(1),
        H_MODULE_STRIDE=lora.h.stride(2),
        WIDTH0=width0,
        WIDTH1=width1,
        WIDTH2=width2,
        WIDTH_ALIGN=math.gcd(lora_layout.PIECE_ALIGN_ELEMENTS, *widths),
        BLOCK_TOKENS=lora.config.block_tokens,
        BLOCK_COLS=config.block_cols,
        BLOCK_RANK=config.block_rank,
        SPLIT_K=lora.config.shrink.split_k,
        STAGES=config.num_stages,
        **_launch_options(lora, config.num_warps),
    )


def _launch_options(lora: PooledLora, num_warps: int) -> dict[str, int | bool]:
    options: dict[str, int | bool] = {"num_warps": num_warps, "OVERLAP": lora.config.overlap}
    if lora.config.overlap:
        options["launch_pdl"] = True
    return options


def _table_field(lora: PooledLora, layer: int, group: int) -> int:
    return (layer * lora.table.shape[2] + group) * lora_layout.TABLE_FIELDS


def _checked_tokens(lora: PooledLora, tokens: Tensor, width: int) -> int:
    """The number of rows of `tokens` [tokens, width]; ValueError if the kernels cannot take them."""
    num_tokens = tokens.shape[0]
    if tokens.shape[1] != width or tokens.stride(1) != 1 or tokens.dtype != lora.pool.dtype:
        raise ValueError(f"expected {width} {lora.pool.dtype} columns; got {tokens.shape}, {tokens.dtype}")
    if not 0 < num_tokens <= lora.h.shape[1]:
        raise ValueError(f"{num_tokens} tokens; there is room for 1 to {lora.h.shape[1]}")
    return num_tokens


def add_pooled_reference(lora: PooledLora, layer: int, group: int, x: Tensor, y: Tensor) -> Tensor:
    """The semantics above in float32, from the same pool, table and work; returns a new tensor."""
    first, count = lora.work[lora_work.TOKEN_LIST :][:2].tolist()
    fields = lora_work.TOKEN_TILE_FIELDS
    tiles = lora.work[first : first + count * fields].view(-1, fields).tolist()
    token_adapter = [-1] * x.shape[0]
    adapters = [_pooled_parts(lora, adapter_slot, layer, group) for adapter_slot, _, _ in tiles]
    for index, (_, first_token, num_tokens) in enumerate(tiles):
        token_adapter[first_token : first_token + num_tokens] = [index] * num_tokens
    return add_lora_reference(x, y, adapters, token_adapter)


def _pooled_parts(lora: PooledLora, adapter_slot: int, layer: int, group: int) -> list[LoraPart]:
    """One adapter's parts of one group of one layer, as views of the pool."""
    shape, entry = lora.groups[group], lora.table[adapter_slot, layer, group].tolist()
    rank_limit = int(lora.work[lora_work.RANK_LIMIT])
    parts, column = [], 0
    for index, out_width in enumerate(shape.out_widths):
        first = lora_layout.FIRST_MODULE + index * lora_layout.MODULE_FIELDS
        stored_rank, row, b_offset, bias_offset = entry[first : first + lora_layout.MODULE_FIELDS]
        lora_rank = min(stored_rank, rank_limit)
        if lora_rank:
            a_offset = entry[lora_layout.A_OFFSET] + row * shape.in_width
            a = lora.pool[a_offset:][: lora_rank * shape.in_width].view(lora_rank, -1)
            b_rows = lora.pool[b_offset:][: lora_rank * out_width].view(lora_rank, -1)
            bias = None if bias_offset == lora_layout.NO_BIAS else lora.pool[bias_offset:][:out_width]
            parts.append(LoraPart(a, b_rows, bias, column))
        column += out_width
    return parts
