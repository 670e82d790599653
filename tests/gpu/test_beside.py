"""LoRA's shrink and the base's product at the same time: the same bits as one after the other."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from caraserve_cli.engine.pool_lora import FEW_TOKENS
from caraserve_kernels.linear import linear
from caraserve_kernels.lora_layout import AdapterLayout, FusedGroup, empty_table
from caraserve_kernels.lora_pool import DECODE_CONFIG, FEW_CONFIG, PooledLora, add_pooled_reference
from caraserve_kernels.lora_work import build_work, work_capacity
from caraserve_kernels.rms_norm import add_rms_norm

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

WIDTH, LAYERS, REPLAYS = 4096, 4, 40
# Llama-2-7B's; the second product is split among programs.
GROUPS = (FusedGroup(("q", "k", "v"), WIDTH, (WIDTH,) * 3), FusedGroup(("o",), WIDTH, (WIDTH,)))
RANKS = (8, 16, 32, 64)


def make_lora(num_tokens: int) -> PooledLora:
    """An adapter a token."""
    table, first = empty_table(num_tokens, LAYERS, len(GROUPS)), 0
    rows = np.zeros((num_tokens, len(GROUPS)), np.int32)
    for slot in range(num_tokens):
        lora_rank = RANKS[slot % len(RANKS)]
        keys = {(layer, m): lora_rank for layer in range(LAYERS) for group in GROUPS for m in group.modules}
        layout = AdapterLayout.build(GROUPS, LAYERS, keys)
        table[slot], rows[slot] = layout.placed(first), layout.stacked_rows
        first += layout.num_elements
    config = FEW_CONFIG if num_tokens <= FEW_TOKENS else DECODE_CONFIG
    tiling = config.tiling
    work = np.zeros(work_capacity(2, num_tokens, num_tokens, 3 * 64, *tiling), np.int32)
    segments = np.array([(token, token, 1) for token in range(num_tokens)])
    build_work(work, segments, rows, tiling)
    pool = torch.empty(first, dtype=torch.bfloat16, device="cuda").normal_(std=0.02)
    h = torch.full((1, num_tokens, 3, 64), torch.nan, device="cuda")
    num_sms = torch.cuda.get_device_properties(0).multi_processor_count
    buffers = (pool, torch.from_numpy(table).cuda(), torch.from_numpy(work).cuda(), h)
    return PooledLora(GROUPS, *buffers, dataclasses.replace(config, overlap=True), num_sms)


def outputs(lora: PooledLora, weights: list[list[Tensor]], xs: list[Tensor], *, beside: bool) -> list[Tensor]:
    """What a captured graph of all layers gives for each x, each written by the norm right before its use."""
    hidden = torch.empty_like(xs[0])
    norm = torch.ones(WIDTH, dtype=hidden.dtype, device="cuda")
    kept: list[Tensor] = []

    def run() -> None:
        kept.clear()
        stream = hidden.clone()
        for layer in range(LAYERS):
            for group in range(len(GROUPS)):
                x = add_rms_norm(stream, None, norm, 1e-6)
                begun = beside and lora.begin(layer, group, x)
                assert begun == beside
                y = linear(x, weights[layer][group], beside=beside)
                lora_after = (
                    lora
                    if beside
                    else dataclasses.replace(lora, config=dataclasses.replace(lora.config, overlap=False))
                )
                lora_after.add(layer, group, x, y)
                kept.append(y)
                stream = stream + y[:, :WIDTH]

    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    results = []
    for x in xs:
        hidden.copy_(x)
        graph.replay()
        results.append(torch.cat(kept, dim=1).clone())
    return results


@pytest.mark.parametrize("num_tokens", [1, 8, 32])
def test_the_same_bits(num_tokens: int) -> None:
    lora = make_lora(num_tokens)
    weights = [
        [
            torch.empty(sum(group.out_widths), WIDTH, dtype=torch.bfloat16, device="cuda").normal_(std=0.02)
            for group in GROUPS
        ]
        for _ in range(LAYERS)
    ]
    xs = [torch.randn(num_tokens, WIDTH, device="cuda").bfloat16() for _ in range(REPLAYS)]
    expected = outputs(lora, weights, xs, beside=False)
    actual = outputs(lora, weights, xs, beside=True)
    assert not torch.equal(expected[0], expected[1])
    for index in range(REPLAYS):
        assert torch.equal(actual[index], expected[index]), f"replay {index}"


def test_the_sum_is_the_references() -> None:
    lora = make_lora(8)
    x = torch.randn(8, WIDTH, device="cuda").bfloat16()
    weight = torch.empty(WIDTH, WIDTH, dtype=torch.bfloat16, device="cuda").normal_(std=0.002)
    base = linear(x, weight)
    assert lora.begin(2, 1, x)
    y = linear(x, weight, beside=True)
    lora.add(2, 1, x, y)
    expected = add_pooled_reference(lora, 2, 1, x, base)
    largest = (expected - base.float()).abs().max()
    assert float((y.float() - expected).abs().max() / largest) < 0.03
