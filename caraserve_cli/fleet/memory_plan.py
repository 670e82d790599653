"""How a device's memory is shared out among the base, the adapter pool, the KV cache and the steps.

Knows the options and the base's sizes, not the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import overload

import torch

from caraserve_cli.adapters.packing import MAX_LORA_RANK
from caraserve_cli.config import EngineConfig, parse_size
from caraserve_cli.engine.step_sizes import beside_sizes
from caraserve_cli.errors import OptionError
from caraserve_cli.fleet.machine import free_host_bytes
from caraserve_cli.fleet.options import ReplicaOptions
from caraserve_cli.model.attention import KvCache
from caraserve_cli.model.decoder_config import DecoderConfig
from caraserve_cli.model.weights import empty_weights

# Shares of the host memory that is free before the base is loaded. They leave room for activations and for
# the rest of the machine. Chosen, not measured.
KV_SHARE = 0.2
DEVICE_ADAPTER_SHARE = 0.1
HOST_ADAPTER_SHARE = 0.25

# The share of a GPU's memory that a replica takes, and what the adapter pool gets of it once the base and the
# steps have theirs; the KV cache takes the rest. Chosen, not measured.
GPU_SHARE = 0.9
GPU_ADAPTER_SHARE = 0.2
# CUDA's context, cuBLAS's workspaces, kernels and graphs. Chosen, not measured.
GPU_RUNTIME_BYTES = 2 * 2**30
# What steps beside the others take of the same: cuBLAS's workspace for their stream, 32 MiB on a Hopper, and
# the graphs of 17 of the 114 sizes and ways of steps that a replica has by default. Chosen, not measured.
GPU_BESIDE_RUNTIME_BYTES = 2**28


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """An engine's sizes on a device, and the host's room for adapters.

    `total_bytes` is what all of it may take on the device; `base_bytes` are the base's weights,
    `working_bytes` what a step needs besides, `beside_bytes` of which are for those beside the others. It is
    the plan of each of `num_processes`.
    """

    engine: EngineConfig
    host_adapter_bytes: int
    total_bytes: int
    base_bytes: int
    kv_bytes: int
    working_bytes: int
    beside_bytes: int = 0
    num_processes: int = 1

    def describe(self) -> str:
        """The plan in one line."""
        each = "" if self.num_processes == 1 else f" in each of {self.num_processes} processes"
        return (
            f"base {_size(self.base_bytes)}, room for adapters {_size(self.engine.adapter_memory_bytes)}, "
            f"KV cache {_size(self.kv_bytes)} ({self.engine.num_kv_tokens:,} tokens), "
            f"steps {_size(self.working_bytes)}; of {_size(self.total_bytes)}{each}"
        )


def _size(num_bytes: int) -> str:
    """In GB, or where that would be 0.0, in MB."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 5e7 else f"{num_bytes / 1e6:.3g} MB"


def plan_memory(
    options: ReplicaOptions, config: DecoderConfig, dtype: torch.dtype, device: torch.device
) -> MemoryPlan:
    """Share out the memory. Options in bytes are taken as they are; a fraction for `--gpu-memory` is of the
    GPU's memory, others of what all parts together may take. Of several processes that hold the base together
    each has a GPU, or an equal share of the host's memory; `config` is one's part, and the plan is for one.

    Raises:
        OptionError: a size is malformed, too small to hold anything, or the parts do not fit together.
    """
    host_bytes = free_host_bytes() if options.host_memory_bytes is None else options.host_memory_bytes
    host_bytes //= options.tensor_parallel
    total_bytes = _total_bytes(options, device, host_bytes)
    base_bytes = empty_weights(config, dtype, torch.device("meta")).num_bytes
    beside_bytes = _beside_bytes(options, config, dtype, device)
    working_bytes = _working_bytes(options, config, dtype, device) + beside_bytes
    left_bytes = total_bytes - base_bytes - working_bytes
    if left_bytes <= 0:
        raise OptionError(
            f"--base: its weights take {_size(base_bytes)} and a step {_size(working_bytes)}, and there are "
            f"{_size(total_bytes)}; choose a smaller base or a device with more memory"
        )
    adapter_bytes, num_kv_blocks, block_bytes = _share_out(
        options, config, dtype, device, total_bytes, left_bytes
    )
    engine = EngineConfig(
        num_kv_blocks=num_kv_blocks,
        adapter_memory_bytes=adapter_bytes,
        max_context_tokens=config.context_tokens,
        kv_block_tokens=options.kv_block_tokens,
        max_running=options.max_running,
        max_batch_tokens=options.max_batch_tokens,
        prefill_chunk_tokens=options.prefill_chunk_tokens,
        prefix_caching=options.prefix_caching,
        drop_missed=options.on_missed_deadline == "drop",
    )
    return MemoryPlan(
        engine=engine,
        host_adapter_bytes=_share(
            "--host-adapter-memory", options.host_adapter_memory, host_bytes, HOST_ADAPTER_SHARE
        ),
        total_bytes=total_bytes,
        base_bytes=base_bytes,
        kv_bytes=num_kv_blocks * block_bytes,
        working_bytes=working_bytes,
        beside_bytes=beside_bytes,
        num_processes=options.tensor_parallel,
    )


def _share_out(
    options: ReplicaOptions,
    config: DecoderConfig,
    dtype: torch.dtype,
    device: torch.device,
    total_bytes: int,
    left_bytes: int,
) -> tuple[int, int, int]:
    """The adapter pool's bytes, the KV cache's blocks, and bytes a block, in what base and steps leave."""
    block_bytes = KvCache.block_bytes(config.shape, options.kv_block_tokens, dtype)
    most_kv_bytes = block_bytes * options.max_running * -(-config.context_tokens // options.kv_block_tokens)
    kv_share, adapter_share = _default_shares(device, left_bytes, total_bytes)
    asked_kv_bytes = _share("--kv-memory", options.kv_memory, total_bytes, None)
    kv_bytes = min(most_kv_bytes, asked_kv_bytes or 0)
    adapter_bytes = _share("--adapter-memory", options.adapter_memory, total_bytes, adapter_share)
    if options.adapter_memory is None:
        adapter_bytes = min(adapter_bytes, max(1, int(GPU_ADAPTER_SHARE * (left_bytes - kv_bytes))))
    if adapter_bytes + max(kv_bytes, block_bytes) > left_bytes:
        raise OptionError(
            f"--kv-memory, --adapter-memory: they come to {_size(kv_bytes)} and {_size(adapter_bytes)}, and "
            f"beside base and steps there are {_size(left_bytes)}; ask for less, or raise --gpu-memory"
        )
    if asked_kv_bytes is None:
        kv_bytes = min(int(kv_share * total_bytes), left_bytes - adapter_bytes, most_kv_bytes)
    if kv_bytes < block_bytes:
        raise OptionError(
            f"--kv-memory: one block of {options.kv_block_tokens} tokens takes {block_bytes} bytes, and "
            f"{kv_bytes} are left for it; give more memory, or make other parts smaller"
        )
    return adapter_bytes, kv_bytes // block_bytes, block_bytes


def _total_bytes(options: ReplicaOptions, device: torch.device, host_bytes: int) -> int:
    """What all parts together may take on the device."""
    if device.type == "cuda":
        free_bytes, gpu_bytes = torch.cuda.mem_get_info(device)
        return min(free_bytes, _share("--gpu-memory", options.gpu_memory, gpu_bytes, GPU_SHARE))
    if options.gpu_memory is not None:
        raise OptionError("--gpu-memory: the base runs on the CPU; leave it out, or use --device cuda")
    return host_bytes


def _default_shares(device: torch.device, left_bytes: int, total_bytes: int) -> tuple[float, float]:
    """The KV cache's and the adapter pool's shares of `total_bytes`."""
    if device.type != "cuda":
        return KV_SHARE, DEVICE_ADAPTER_SHARE
    return 1.0, GPU_ADAPTER_SHARE * left_bytes / total_bytes


def _working_bytes(
    options: ReplicaOptions, config: DecoderConfig, dtype: torch.dtype, device: torch.device
) -> int:
    """What the largest step needs, on a GPU with the rotations that steps look up."""
    num_bytes = _step_bytes(options.max_batch_tokens, options.max_running, config, dtype, device)
    if device.type != "cuda":
        return num_bytes
    rotation_bytes = 2 * config.context_tokens * config.shape.head_dim * dtype.itemsize
    return num_bytes + rotation_bytes + GPU_RUNTIME_BYTES


def _beside_bytes(
    options: ReplicaOptions, config: DecoderConfig, dtype: torch.dtype, device: torch.device
) -> int:
    """What the largest step beside the others needs: whatever the strategy, a replica can be told `auto`.
    There are none on the CPU, nor where several processes hold the base."""
    if device.type != "cuda" or options.tensor_parallel > 1:
        return 0
    most_tokens = beside_sizes(options.max_batch_tokens)[-1]
    most_rows = min(options.max_running, most_tokens)
    return _step_bytes(most_tokens, most_rows, config, dtype, device) + GPU_BESIDE_RUNTIME_BYTES


def _step_bytes(
    num_tokens: int, num_rows: int, config: DecoderConfig, dtype: torch.dtype, device: torch.device
) -> int:
    """What a step takes of so many tokens, with so many rows of logits: the residual stream, the widest
    module's input and output twice, since the allocator keeps what the last layer has given back; LoRA's
    intermediate rows; the logits, and what drawing from them takes, seven arrays of eight bytes."""
    shape = config.shape
    widest = 3 * shape.intermediate_size + (3 * shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim
    per_token = (4 * shape.hidden_size + 2 * widest) * dtype.itemsize
    # Logits that come from several processes are there as gathered, and as put side by side.
    num_logits = 2 if config.shard.is_whole else 4
    per_logit = num_logits * dtype.itemsize + torch.float32.itemsize + 7 * torch.float64.itemsize
    if device.type == "cuda":
        per_token += 3 * MAX_LORA_RANK * torch.float32.itemsize
    return num_tokens * per_token + num_rows * shape.vocab_size * per_logit


@overload
def _share(option: str, text: str | None, total_bytes: int, default: float) -> int: ...


@overload
def _share(option: str, text: str | None, total_bytes: int, default: None) -> int | None: ...


def _share(option: str, text: str | None, total_bytes: int, default: float | None) -> int | None:
    """The bytes that an option asks for, or its default share."""
    if text is not None:
        return parse_size(option, text, total_bytes)
    return None if default is None else int(default * total_bytes)
