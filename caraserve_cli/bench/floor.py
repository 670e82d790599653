"""How fast the device could be at best: its measured speeds, and the least work that a case takes.

For N requests of P prompt and O output tokens, of which M = min(N, max_running) run at once:

    floor seconds = prefill FLOPs / matrix product rate + decode bytes / copy bandwidth

    prefill FLOPs = Σ requests (2·P·(L + A) + 2·hidden·vocabulary
                                + Σ layers 4·heads·head_dim·Σ_{j=1..P} seen(j))
    decode bytes  = Σ groups of M requests, Σ steps t = 1 … O-1
                    ((L + hidden·vocabulary + Σ distinct adapters of the group A)·itemsize
                     + Σ requests Σ layers 2·kv heads·head_dim·itemsize·seen(P + t))

with L the elements of the base's linear modules, A those of an adapter's A and B, and seen(j) = min(j, the
layer's sliding window). A prompt's last token yields the first output token, so O-1 steps are left. Norms,
biases, embeddings, activations, and the way of adapters to the device are left out, and so is that a small
adapter pool keeps a batch small: the floor is lower than any engine can reach.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import torch

from caraserve_cli.core import LORA_MODULES
from caraserve_cli.fleet.synthetic_adapter import SyntheticAdapter
from caraserve_cli.model.attention import KvCache
from caraserve_cli.model.decoder_config import DecoderConfig

# Large enough that neither a cache nor a launch counts, and small enough for the CPU to take a second in all.
_COPY_BYTES = {"cuda": 2 * 2**30, "cpu": 128 * 2**20}
_PRODUCT_SIZE = {"cuda": 8192, "cpu": 1024}
_NUM_TIMED = {"cuda": 20, "cpu": 5}
_NUM_WARMUPS = 3

_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSpeed:
    """What was measured on a device: bytes read and written by a copy, operations of a matrix product."""

    bytes_per_s: float
    flops_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FloorCase:
    """What the floor of a case depends on; `adapters` has that of each request, None for the base alone."""

    adapters: Sequence[SyntheticAdapter | None]
    prompt_tokens: int
    output_tokens: int
    max_running: int

    @property
    def num_output_tokens(self) -> int:
        return len(self.adapters) * self.output_tokens


def floor_seconds(case: FloorCase, config: DecoderConfig, dtype: torch.dtype, speed: DeviceSpeed) -> float:
    """The formula above."""
    prefill_s = _prefill_flops(case, config) / speed.flops_per_s
    return prefill_s + _decode_bytes(case, config, dtype) / speed.bytes_per_s


def decode_step_seconds(
    adapters: Sequence[SyntheticAdapter | None],
    context_tokens: float,
    config: DecoderConfig,
    dtype: torch.dtype,
    speed: DeviceSpeed,
) -> float:
    """The floor of one decoding step: a token each for requests with these adapters, which see this many
    tokens on average."""
    num_bytes = _weight_bytes(adapters, config, dtype) + len(adapters) * (
        _seen_tokens(config, context_tokens) * _kv_token_bytes(config, dtype)
    )
    return num_bytes / speed.bytes_per_s


def adapters_seconds(
    adapters: Sequence[SyntheticAdapter | None],
    config: DecoderConfig,
    dtype: torch.dtype,
    speed: DeviceSpeed,
) -> float:
    """The least that a decoding step takes to read its adapters, each distinct one once. The time that they
    add to it can be less: some of the reading may run beside the base's products."""
    return _lora_weights(adapters, config) * dtype.itemsize / speed.bytes_per_s


def prefill_step_flops(num_tokens: int, config: DecoderConfig) -> int:
    """Operations of the base's linear modules for the tokens of one step."""
    return 2 * num_tokens * _linear_weights(config)


def _linear_weights(config: DecoderConfig) -> int:
    per_layer = 0
    for module in LORA_MODULES:
        in_width, out_width = config.shape.module_shape(module)
        per_layer += in_width * out_width
    return config.shape.num_layers * per_layer


def _head_weights(config: DecoderConfig) -> int:
    return config.shape.hidden_size * config.shape.vocab_size


def _seen_tokens(config: DecoderConfig, context_tokens: _Number) -> _Number:
    """Tokens that the last one of a context attends to, summed over the layers."""
    return sum(
        num_layers * (context_tokens if window is None else min(context_tokens, window))
        for window, num_layers in Counter(config.sliding_window).items()
    )


def _prefill_flops(case: FloorCase, config: DecoderConfig) -> int:
    shape, num_tokens = config.shape, case.prompt_tokens
    lora_weights = sum(adapter.num_weights(shape) for adapter in case.adapters if adapter is not None)
    seen = sum(_seen_tokens(config, end) for end in range(1, num_tokens + 1))
    per_request = (
        2 * num_tokens * _linear_weights(config)
        + 2 * _head_weights(config)
        + 4 * shape.num_heads * shape.head_dim * seen
    )
    return len(case.adapters) * per_request + 2 * num_tokens * lora_weights


def _decode_bytes(case: FloorCase, config: DecoderConfig, dtype: torch.dtype) -> int:
    num_steps = case.output_tokens - 1
    seen = sum(_seen_tokens(config, case.prompt_tokens + step) for step in range(1, num_steps + 1))
    total_bytes = len(case.adapters) * seen * _kv_token_bytes(config, dtype)
    for first in range(0, len(case.adapters), case.max_running):
        group = case.adapters[first : first + case.max_running]
        total_bytes += num_steps * _weight_bytes(group, config, dtype)
    return total_bytes


def _weight_bytes(
    adapters: Sequence[SyntheticAdapter | None], config: DecoderConfig, dtype: torch.dtype
) -> int:
    """All weights that a step reads, each once."""
    weights = _linear_weights(config) + _head_weights(config) + _lora_weights(adapters, config)
    return weights * dtype.itemsize


def _lora_weights(adapters: Sequence[SyntheticAdapter | None], config: DecoderConfig) -> int:
    """Elements of the distinct ones."""
    return sum(adapter.num_weights(config.shape) for adapter in set(adapters) if adapter is not None)


def _kv_token_bytes(config: DecoderConfig, dtype: torch.dtype) -> int:
    """Keys and values of one token in one layer: the layers are in `_seen_tokens`."""
    return KvCache.block_bytes(config.shape, 1, dtype) // config.shape.num_layers


def measure_speed(device: torch.device, dtype: torch.dtype) -> DeviceSpeed:
    """Measure a device, with random data; what it takes of memory is given back."""
    speed = DeviceSpeed(bytes_per_s=_measure_copy(device), flops_per_s=_measure_product(device, dtype))
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return speed


def _measure_copy(device: torch.device) -> float:
    source = torch.empty(_COPY_BYTES[device.type] // 4, dtype=torch.float32, device=device).normal_()
    target = torch.empty_like(source)
    return 2 * source.nbytes / _median_seconds(lambda: target.copy_(source), device)


def _measure_product(device: torch.device, dtype: torch.dtype) -> float:
    size = _PRODUCT_SIZE[device.type]
    left, right = (torch.empty(size, size, dtype=dtype, device=device).normal_() for _ in range(2))
    product = torch.empty_like(left)
    return 2 * size**3 / _median_seconds(lambda: torch.mm(left, right, out=product), device)


def _median_seconds(work: Callable[[], object], device: torch.device) -> float:
    for _ in range(_NUM_WARMUPS):
        work()
    timed = _cuda_seconds if device.type == "cuda" else _cpu_seconds
    return statistics.median(timed(work, _NUM_TIMED[device.type]))


def _cuda_seconds(work: Callable[[], object], num_timed: int) -> list[float]:
    marks = [
        torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        for _ in range(num_timed + 1)
    ]
    marks[0].record()
    for mark in marks[1:]:
        work()
        mark.record()
    torch.cuda.synchronize()
    return [before.elapsed_time(after) / 1000 for before, after in pairwise(marks)]


def _cpu_seconds(work: Callable[[], object], num_timed: int) -> list[float]:
    seconds: list[float] = []
    for _ in range(num_timed):
        started_s = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started_s)
    return seconds
