"""An adapter's way from pinned memory to the device, beside contiguous copies of as many bytes: a load of the
pool until all groups of layers and the table have arrived, and single layers, each a copy of its own, as
`LayerCopies` makes them. Host memory is pinned where there is a GPU.

The copies are made on a stream of their own; the clock's end is on the stream that waits for them. All times
have the host's part in them, until the first copy begins: planning and queueing for ours, a call for theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

from caraserve_cli.adapters.copy_lane import open_lane
from caraserve_cli.adapters.layer_order import LayerOrder
from caraserve_cli.adapters.packed_pool import PackedPool
from caraserve_cli.adapters.packing import Packer, UnpaddedForm
from caraserve_cli.adapters.transfer import LayerCopy
from caraserve_cli.adapters.transfers import Transfers
from caraserve_cli.adapters.weights import AdapterWeights, PackedWeights
from caraserve_cli.bench.comparison import Spread
from caraserve_cli.bench.kernel_bench import KernelBench
from caraserve_cli.bench.kernel_cases import LoadCase
from caraserve_cli.bench.kernel_result import LoadResult
from caraserve_cli.fleet.device_timer import Work
from caraserve_cli.fleet.synthetic_adapter import SyntheticAdapter
from caraserve_cli.fleet.synthetic_adapters import SyntheticAdapters


@dataclass(frozen=True, slots=True, eq=False)
class _Load:
    """An adapter in host memory, and a pool with room for it; both ways in it."""

    weights: AdapterWeights
    packed: PackedWeights
    pool: PackedPool
    # Each transfer as of a base with one layer: what one launch brings in.
    one_layer: Transfers

    @classmethod
    def make(cls, bench: KernelBench, lora_rank: int, *, pinned: bool) -> _Load:
        weights = _random_adapter(bench, lora_rank, pinned=pinned)
        assert weights.packed is not None
        pool = PackedPool(bench.shape, weights.packed.blob.nbytes, 1, bench.dtype, bench.device)
        return cls(weights, weights.packed, pool, Transfers(open_lane(bench.device), 1))

    def whole(self) -> None:
        """As a step does whose adapter is not resident."""
        self.pool.load(0, self.weights, 0)
        self.pool.start_copies()
        self.pool.transfers.wait()

    def layers(self) -> None:
        """Layer after layer, each waited for."""
        for first, end in self.bounds():
            piece = slice(first, end)
            copy = LayerCopy(self.pool.weights[piece], self.packed.blob[piece], (0, end - first))
            self.one_layer.open([copy], LayerOrder()).wait()

    def bounds(self) -> list[tuple[int, int]]:
        """Elements of each layer."""
        return list(pairwise(self.packed.layout.layer_starts))

    def arrives(self, load: Callable[[], None]) -> bool:
        """Whether all of the blob is on the device after `load`."""
        self.pool.weights.zero_()
        # The copies come after that.
        self.pool.transfers.mark_stale()
        self.one_layer.mark_stale()
        load()
        return torch.equal(self.pool.weights.cpu(), self.packed.blob)

    def has_table(self) -> bool:
        """Whether the kernels find the adapter where it is."""
        expected = torch.from_numpy(self.packed.layout.placed(0))
        return torch.equal(self.pool.table[0].cpu(), expected)


def measure_loads(bench: KernelBench, case: LoadCase) -> LoadResult:
    """The adapter and its layers, each interleaved with the contiguous copies."""
    pinned = bench.device.type == "cuda"
    load = _Load.make(bench, case.lora_rank, pinned=pinned)
    blob = load.packed.blob
    # Not the blob and the pool: whole tensors, each contiguous.
    source = torch.zeros(blob.shape[0], dtype=blob.dtype, pin_memory=pinned)
    target = torch.empty_like(load.pool.weights)
    layers = [torch.zeros(end - first, dtype=blob.dtype, pin_memory=pinned) for first, end in load.bounds()]
    targets = [torch.empty(layer.shape, dtype=layer.dtype, device=bench.device) for layer in layers]

    def copy_layers() -> None:
        for layer_target, layer in zip(targets, layers, strict=True):
            layer_target.copy_(layer, non_blocking=True)

    is_equal = load.arrives(load.whole) and load.has_table() and load.arrives(load.layers)
    times = bench.timer.time_us(
        {
            "adapter": Work(load.whole, 1, captured=False),
            "contiguous": Work(lambda: target.copy_(source, non_blocking=True), 1, captured=False),
            "layer": Work(load.layers, len(layers), captured=False),
            "contiguous layer": Work(copy_layers, len(layers), captured=False),
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
