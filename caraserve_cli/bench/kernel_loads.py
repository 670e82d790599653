"""An adapter's way from pinned memory to the device: a load of the pool until all has arrived, and one layer
of its blob, beside contiguous copies of as many bytes. Host memory is pinned where there is a GPU.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch

from caraserve_cli.adapters.packed_pool import PackedPool
from caraserve_cli.adapters.packing import Packer, UnpaddedForm
from caraserve_cli.adapters.weights import AdapterWeights
from caraserve_cli.bench.comparison import Spread
from caraserve_cli.bench.kernel_bench import KernelBench
from caraserve_cli.bench.kernel_recipe import LoadCase
from caraserve_cli.bench.kernel_result import LoadResult
from caraserve_cli.bench.kernel_timer import Work
from caraserve_cli.bench.synthetic import SyntheticAdapter, SyntheticAdapters


def measure_loads(bench: KernelBench, case: LoadCase) -> LoadResult:
    """The adapter and its layers, each interleaved with the contiguous copies."""
    pinned = bench.device.type == "cuda"
    weights = _random_adapter(bench, case.lora_rank, pinned=pinned)
    assert weights.packed is not None
    blob, layout = weights.packed.blob, weights.packed.layout
    pool = PackedPool(bench.shape, blob.nbytes, 1, bench.dtype, bench.device)
    # Not the blob and the pool: whole tensors, each contiguous.
    source = torch.zeros(blob.shape[0], dtype=blob.dtype, pin_memory=pinned)
    target = torch.empty_like(pool.weights)
    pieces = tuple(slice(*bounds) for bounds in pairwise(layout.layer_starts))
    layers = [torch.zeros_like(blob[piece], pin_memory=pinned) for piece in pieces]
    targets = [torch.empty(layer.shape, dtype=layer.dtype, device=bench.device) for layer in layers]

    def load() -> None:
        pool.load(0, weights, 0)
        pool.copies.start()
        pool.copies.wait()

    def load_layers() -> None:
        for piece in pieces:
            pool.weights[piece].copy_(blob[piece], non_blocking=True)

    def copy_layers() -> None:
        for layer_target, layer in zip(targets, layers, strict=True):
            layer_target.copy_(layer, non_blocking=True)

    pool.weights.zero_()
    pool.copies.mark_stale()
    load()
    is_equal = torch.equal(pool.weights.cpu(), blob)
    times = bench.timer.time_us(
        {
            "adapter": Work(load, 1, captured=False),
            "contiguous": Work(lambda: target.copy_(source, non_blocking=True), 1, captured=False),
            "layer": Work(load_layers, len(pieces), captured=False),
            "contiguous layer": Work(copy_layers, len(pieces), captured=False),
        }
    )
    return LoadResult(
        case=case,
        adapter_bytes=blob.nbytes,
        adapter_us=times["adapter"],
        contiguous_us=times["contiguous"],
        adapter_ratio=_ratio(times["adapter"], times["contiguous"]),
        layer_us=times["layer"],
        contiguous_layer_us=times["contiguous layer"],
        layer_ratio=_ratio(times["layer"], times["contiguous layer"]),
        wrong=None if is_equal else "is not on the device what it is in host memory",
    )


def _random_adapter(bench: KernelBench, lora_rank: int, *, pinned: bool) -> AdapterWeights:
    adapter = SyntheticAdapter(lora_rank, bench.modules, 0)
    loose = SyntheticAdapters([adapter], packed=True).load(adapter.name, Path(), bench.shape, bench.dtype)
    return Packer(bench.shape, UnpaddedForm(), pinned).pack(loose)


def _ratio(ours: Spread, contiguous: Spread) -> Spread:
    """Repeat by repeat."""
    return Spread.of([a / b for a, b in zip(ours.values, contiguous.values, strict=True)])
