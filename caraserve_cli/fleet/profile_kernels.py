"""What adapters add to a decoding step, measured where they run: both kernels on a GPU, and on a CPU what a
step computes for its adapters one after the other. Lines are drawn through the times (paper, section 2).
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median

import torch

from caraserve_cli.adapters.device_pool import DevicePool
from caraserve_cli.adapters.weights import AdapterWeights, LoraPair
from caraserve_cli.core import BaseShape
from caraserve_cli.engine.lora_batch import AdapterSegment, LoraBatcher
from caraserve_cli.errors import ProfileError
from caraserve_cli.fleet.device_timer import DeviceTimer, Work
from caraserve_cli.fleet.kernel_batches import BGMV, MBGMV, BatchSizes, measure_batches, rank_mixes
from caraserve_cli.fleet.kernel_place import KernelPlace, Projection, make_projections
from caraserve_cli.perf.lora_kernels import KernelTimes

# What adapters change that are measured: attention, as in the paper, and its output.
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj")
# The paper's ranks. Batches of a GPU go one size beyond the paper's, those of a CPU are what one serves.
_LORA_RANKS = (8, 16, 32, 64)
_GPU_BATCH_SIZES, _CPU_BATCH_SIZES = (4, 8, 16, 32, 64), (1, 2, 4, 8, 16)
_REPEATS = 5
# Of the device's free memory, what both pools may take; of a host's, what its adapters may. With fewer layers
# than the base has, the times are those of as many as fit, times the rest. Chosen, not measured.
_SHARE_OF_DEVICE = 0.25
_HOST_BYTES = 256 * 2**20
_WEIGHT_STD = 0.02


def measure_kernels(shape: BaseShape, dtype: torch.dtype, device: torch.device) -> list[KernelTimes]:
    """The times of each kernel that the device has, the padded one first. Nothing else must be on it.

    Raises:
        ProfileError: what a kernel computes is wrong, or not even one layer fits.
    """
    place = KernelPlace(shape, MODULES, device, dtype)
    if device.type != "cuda":
        return [measure_on_cpu(place)]
    try:
        return measure_on_gpu(place, torch.cuda.mem_get_info(device)[0])
    finally:
        # The base is loaded next, into what the pools and graphs took.
        gc.collect()
        torch.cuda.empty_cache()


@torch.inference_mode()
def measure_on_gpu(place: KernelPlace, free_bytes: int) -> list[KernelTimes]:
    """Both kernels on a device pool; `free_bytes` of the device's memory.

    Raises:
        ProfileError: as `measure_kernels`.
    """
    most_rank, num_adapters = max(_LORA_RANKS), max(_GPU_BATCH_SIZES)
    # Of both pools.
    layer_bytes = 2 * num_adapters * _layer_bytes(place, most_rank)
    num_layers = _num_layers(place, _SHARE_OF_DEVICE * free_bytes, layer_bytes)
    if not num_layers:
        raise ProfileError(
            f"LoRA kernels: to measure them, {layer_bytes / _SHARE_OF_DEVICE / 1e9:.2g} GB of the device's "
            "memory must be free"
        )
    sizes = BatchSizes(_GPU_BATCH_SIZES, _LORA_RANKS, num_layers)
    timer = DeviceTimer(place.device, _REPEATS)
    batches: list[tuple[int, ...]] = []
    times_ms: dict[str, list[float]] = {BGMV: [], MBGMV: []}
    for batch in measure_batches(place, timer, sizes, num_adapters):
        if wrong := place.wrong(batch.error):
            raise ProfileError(f"LoRA kernels on ranks {batch.adapter_ranks}: what they compute {wrong}")
        batches.append(batch.adapter_ranks)
        for kernel, of_kernel in times_ms.items():
            of_kernel.append(_whole_step_ms(place, median(batch.runs_us[kernel]), num_layers))
    return [KernelTimes(kernel == BGMV, tuple(batches), tuple(ms)) for kernel, ms in times_ms.items()]


@torch.inference_mode()
def measure_on_cpu(place: KernelPlace) -> KernelTimes:
    """A CPU pads nothing but what it stacks; the line is that of the kernel that does not pad."""
    num_adapters = max(_CPU_BATCH_SIZES)
    layer_bytes = num_adapters * _layer_bytes(place, max(_LORA_RANKS))
    num_layers = max(1, _num_layers(place, _HOST_BYTES, layer_bytes))
    measured = replace(place, shape=replace(place.shape, num_layers=num_layers))
    timer = DeviceTimer(place.device, _REPEATS)
    batches: list[tuple[int, ...]] = []
    times_ms: list[float] = []
    for largest_rank in _LORA_RANKS:
        for adapter_ranks in rank_mixes(largest_rank, _LORA_RANKS, num_adapters).values():
            adapters = [random_adapter(measured, lora_rank) for lora_rank in adapter_ranks]
            for batch_size in _CPU_BATCH_SIZES:
                work = Work(cpu_step(measured, adapters[:batch_size]), 1, captured=False)
                step_us = median(timer.runs_us({MBGMV: work})[MBGMV])
                batches.append(adapter_ranks[:batch_size])
                times_ms.append(_whole_step_ms(place, step_us, num_layers))
    return KernelTimes(False, tuple(batches), tuple(times_ms))


@dataclass(frozen=True, slots=True, eq=False)
class CpuStep:
    """Computes the LoRA part of all layers of a step as `ModelRunner` does.

    Attributes:
        adapter_slots: of each token.
    """

    batcher: LoraBatcher
    adapter_slots: Sequence[int]
    num_layers: int
    projections: tuple[Projection, ...]

    def __call__(self) -> None:
        # The context is a part of every step.
        context = self.batcher.begin(
            [AdapterSegment(adapter_slot, token, 1) for token, adapter_slot in enumerate(self.adapter_slots)]
        )
        for layer in range(self.num_layers):
            for each in self.projections:
                context.add(layer, each.modules, each.x, each.y)


def cpu_step(place: KernelPlace, adapters: Sequence[AdapterWeights]) -> CpuStep:
    """A decoding step in which each of these adapters, which are all that are there, has one token."""
    pool = DevicePool(place.shape, place.device)
    batcher = LoraBatcher(place.shape, pool, place.device)
    for adapter_slot, weights in enumerate(adapters):
        pool.load(adapter_slot, weights)
        batcher.add(adapter_slot)
    adapter_slots = sorted(range(len(adapters)), key=batcher.order)
    projections = tuple(make_projections(place, place.shape, len(adapters)))
    return CpuStep(batcher, adapter_slots, place.shape.num_layers, projections)


def random_adapter(place: KernelPlace, lora_rank: int) -> AdapterWeights:
    """One on all modules of all layers."""
    return AdapterWeights("random", dict(_random_pairs(place, lora_rank)))


def _random_pairs(place: KernelPlace, lora_rank: int) -> Iterator[tuple[tuple[int, str], LoraPair]]:
    for layer in range(place.shape.num_layers):
        for module in place.modules:
            widths = place.shape.module_shape(module)
            rows = (place.random(lora_rank, width, std=_WEIGHT_STD) for width in widths)
            yield (layer, module), LoraPair(*rows)


def _layer_bytes(place: KernelPlace, lora_rank: int) -> int:
    widths = sum(sum(place.shape.module_shape(module)) for module in place.modules)
    return lora_rank * widths * place.dtype.itemsize


def _num_layers(place: KernelPlace, most_bytes: float, layer_bytes: int) -> int:
    """That are measured; 0 if there is room for none."""
    return min(place.shape.num_layers, int(most_bytes / layer_bytes))


def _whole_step_ms(place: KernelPlace, measured_us: float, num_layers: int) -> float:
    """Of all layers of the base."""
    return measured_us / 1000 * place.shape.num_layers / num_layers
