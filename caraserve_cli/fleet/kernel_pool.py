"""Random adapters in a device pool, and the LoRA part of a step on them, computed as the engine computes it:
its pool, its layouts, its work lists, and its choice of how a step runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from caraserve_cli.adapters.packed_pool import PackedPool
from caraserve_cli.adapters.packing import LoraForm
from caraserve_cli.adapters.weights import AdapterWeights, LoraPair, PackedWeights
from caraserve_cli.core import FUSED_MODULES, BaseShape
from caraserve_cli.engine.pool_lora import PoolLora, PoolLoraContext
from caraserve_cli.fleet.kernel_place import KernelPlace, Projection, largest_error, make_projections
from caraserve_kernels.lora_layout import AdapterLayout
from caraserve_kernels.lora_pool import add_pooled_reference

_WEIGHT_STD = 0.02
_Y_STD = 0.1

Ints = NDArray[np.int32]


class RandomPool:
    """A device pool of one form, filled with adapters of random content, one slot after the other.

    Args:
        place: device, dtype, and the modules that every adapter changes.
        shape: the base's; it may have other layers than the place's.
        form: how adapters are stored.
        room_for: ranks of the adapters that take the most.
    """

    def __init__(self, place: KernelPlace, shape: BaseShape, form: LoraForm, room_for: Sequence[int]) -> None:
        self.shape, self.form, self._place = shape, form, place
        self._layouts: dict[int, AdapterLayout] = {}
        num_elements = sum(self._layout(lora_rank).num_elements for lora_rank in room_for)
        num_bytes = num_elements * place.dtype.itemsize
        self.packed = PackedPool(shape, num_bytes, len(room_for), place.dtype, place.device)

    def fill(self, adapter_ranks: Sequence[int]) -> None:
        """Adapter i, of the rank i says, is in slot i from now on."""
        first = 0
        for adapter_slot, lora_rank in enumerate(adapter_ranks):
            layout = self._layout(lora_rank)
            packed = PackedWeights(layout, self._random_blob(layout))
            weights = AdapterWeights("random", self._shapes(lora_rank), packed)
            self.packed.load(adapter_slot, weights, first * self._place.dtype.itemsize)
            # The blob was made, and what lay in its place was read, on this stream.
            self.packed.transfers.mark_stale()
            self.packed.start_copies()
            self.packed.transfers.wait()
            self.packed.transfers.settle()  # which lets go of the blobs that were copied
            first += layout.num_elements

    def _layout(self, lora_rank: int) -> AdapterLayout:
        if lora_rank not in self._layouts:
            weights = AdapterWeights("random", self._shapes(lora_rank))
            self._layouts[lora_rank] = self.form.lay_out(self.shape, weights.outline)
        return self._layouts[lora_rank]

    def _shapes(self, lora_rank: int) -> dict[tuple[int, str], LoraPair]:
        """Pairs without content: the pool takes what is packed."""
        pairs = {
            module: LoraPair(
                *(torch.empty(lora_rank, width, device="meta") for width in self.shape.module_shape(module))
            )
            for module in self._place.modules
        }
        return {(layer, module): pairs[module] for layer in range(self.shape.num_layers) for module in pairs}

    def _random_blob(self, layout: AdapterLayout) -> Tensor:
        """On the device: through the host, 16 GB of adapters would take half a minute."""
        blob = self._place.random(layout.num_elements, std=_WEIGHT_STD)
        for piece in layout.pieces.values():
            if piece.stored_rank > piece.lora_rank:
                for offset, width in ((piece.a_offset, piece.in_width), (piece.b_offset, piece.out_width)):
                    blob[offset + piece.lora_rank * width : offset + piece.stored_rank * width].zero_()
        return blob


@dataclass(frozen=True, slots=True, eq=False)
class StepLaunches:
    """Launches the LoRA part of all layers, on buffers of its own."""

    context: PoolLoraContext
    num_layers: int
    projections: tuple[Projection, ...]

    def __call__(self) -> None:
        for layer in range(self.num_layers):
            for each in self.projections:
                self.context.begin(layer, each.modules, each.x)
                self.context.add(layer, each.modules, each.x, each.y)

    def error(self, run: Callable[[], object]) -> float:
        """The largest difference between what `run`, a replay of this, gives and what this gives, of the
        largest value that all layers add."""
        errors: list[float] = []
        before = [each.y.normal_(std=_Y_STD).clone() for each in self.projections]
        self()
        expected = [each.y.clone() for each in self.projections]
        for each, y in zip(self.projections, before, strict=True):
            each.y.copy_(y)
        run()
        for each, y, launched in zip(self.projections, before, expected, strict=True):
            errors.append(largest_error(each.y, launched, launched.float() - y.float()))
        return max(errors)


class PoolStep:
    """The LoRA part of steps on a pool: one set of buffers, whose work lists are written for each step.

    Args:
        place: where.
        pool: the adapters.
        max_tokens: of a step. It decides how the engine's scratch memory is laid out, for which the kernels
            are compiled: with the same for all steps they are compiled once.
        decoding: whether the steps are decoding ones.
    """

    def __init__(self, place: KernelPlace, pool: RandomPool, max_tokens: int, *, decoding: bool) -> None:
        self._place, self._pool = place, pool
        capacity = PoolLora.work_capacity(max_tokens, max_tokens, decoding=decoding)
        self._work = torch.zeros(capacity, dtype=torch.int32, device=place.device)
        self._host_work = np.zeros(capacity, np.int32)
        self._lora = PoolLora(
            pool.packed, pool.form, self._work, max_tokens, place.num_sms, decoding=decoding
        )

    def write(self, segments: Ints) -> PoolLoraContext:
        """Write a step's work lists; the context that computes it."""
        way = self._lora.choose(segments, int(segments[:, 2].sum()))
        num_work = self._lora.write_work(self._host_work, segments, way)
        self._work[:num_work].copy_(torch.from_numpy(self._host_work[:num_work]))
        return self._lora.context(way)

    def launches(self, context: PoolLoraContext, num_tokens: int) -> StepLaunches:
        """The LoRA part of all layers, for whatever work lists were written last."""
        return StepLaunches(
            context,
            self._pool.shape.num_layers,
            tuple(make_projections(self._place, self._pool.shape, num_tokens)),
        )

    def error(self, context: PoolLoraContext, num_tokens: int) -> float:
        """The largest error in the last layer, launched alone, of the largest value that the adapters add."""
        layer, errors = self._pool.shape.num_layers - 1, [0.0]
        for each in make_projections(self._place, self._pool.shape, num_tokens):
            group = FUSED_MODULES.index(each.modules)
            expected = add_pooled_reference(context.pooled, layer, group, each.x, each.y)
            added = expected - each.y.float()
            context.begin(layer, each.modules, each.x)
            context.add(layer, each.modules, each.x, each.y)
            errors.append(largest_error(each.y, expected, added))
        return max(errors)


def even_segments(num_tokens: int, num_adapters: int) -> Ints:
    """[adapters, 3]: the same number of neighbouring tokens for each adapter."""
    each = num_tokens // num_adapters
    return np.array([(slot, slot * each, each) for slot in range(num_adapters)], np.int32)
