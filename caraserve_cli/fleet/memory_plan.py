"""How a device's memory is shared out among the base, the adapter pool, the KV cache and the steps.

Knows the options and the base's sizes, not the weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from caraserve_cli.config import EngineConfig, parse_size
from caraserve_cli.errors import OptionError
from caraserve_cli.fleet.machine import free_host_bytes
from caraserve_cli.fleet.options import ReplicaOptions
from caraserve_cli.model.attention import KvCache
from caraserve_cli.model.config import DecoderConfig
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


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """An engine's sizes on a device, and the host's room for adapters.

    `total_bytes` is what all of it may take on the device; `base_bytes` are the base's weights,
    `working_bytes` what a step needs besides.
    """

    engine: EngineConfig
    host_adapter_bytes: int
    total_bytes: int
    base_bytes: int
    kv_bytes: int
    working_bytes: int

    def describe(self) -> str:
        """The plan in one line."""
        return (
            f"base {_gb(self.base_bytes)}, adapters {_gb(self.engine.adapter_memory_bytes)}, "
            f"KV cache {_gb(self.kv_bytes)} ({self.engine.num_kv_tokens:,} tokens), "
            f"steps {_gb(self.working_bytes)}; of {_gb(self.total_bytes)}"
        )


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB"


def plan_memory(
    options: ReplicaOptions, config: DecoderConfig, dtype: torch.dtype, device: torch.device
) -> MemoryPlan:
    """Share out the memory. Options in bytes are taken as they are; a fraction for `--gpu-memory` is of the
    GPU's memory, others of what all parts together may take.

    Raises:
        OptionError: a size is malformed, or too small to hold anything.
    """
    host_bytes = free_host_bytes()
    base_bytes = empty_weights(config, dtype, torch.device("meta")).num_bytes
    working_bytes = _working_bytes(options, config, dtype)
    if device.type == "cuda":
        free_bytes, gpu_bytes = torch.cuda.mem_get_info(device)
        total_bytes = min(free_bytes, _share("--gpu-memory", options.gpu_memory, gpu_bytes, GPU_SHARE))
        working_bytes += GPU_RUNTIME_BYTES
        left_bytes = max(0, total_bytes - base_bytes - working_bytes)
        adapter_bytes = _share(
            "--adapter-memory",
            options.adapter_memory,
            total_bytes,
            GPU_ADAPTER_SHARE * left_bytes / total_bytes,
        )
        default_kv_bytes = max(0, left_bytes - adapter_bytes)
    else:
        total_bytes = host_bytes
        adapter_bytes = _share("--adapter-memory", options.adapter_memory, host_bytes, DEVICE_ADAPTER_SHARE)
        default_kv_bytes = int(KV_SHARE * host_bytes)
    block_bytes = KvCache.block_bytes(config.shape, options.kv_block_tokens, dtype)
    num_kv_blocks = _num_kv_blocks(options, config, total_bytes, default_kv_bytes, block_bytes)
    engine = EngineConfig(
        num_kv_blocks=num_kv_blocks,
        adapter_memory_bytes=adapter_bytes,
        max_context_tokens=config.context_tokens,
        kv_block_tokens=options.kv_block_tokens,
        max_running=options.max_running,
        max_batch_tokens=options.max_batch_tokens,
        prefill_chunk_tokens=options.prefill_chunk_tokens,
        prefix_caching=options.prefix_caching,
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
    )


def _num_kv_blocks(
    options: ReplicaOptions, config: DecoderConfig, total_bytes: int, default_bytes: int, block_bytes: int
) -> int:
    most_blocks = options.max_running * -(-config.context_tokens // options.kv_block_tokens)
    kv_bytes = default_bytes
    if options.kv_memory is not None:
        kv_bytes = parse_size("--kv-memory", options.kv_memory, total_bytes)
    if kv_bytes < block_bytes:
        raise OptionError(
            f"--kv-memory: one block of {options.kv_block_tokens} tokens takes {block_bytes} bytes, and "
            f"{kv_bytes} are left for it; give more memory, or make other parts smaller"
        )
    return min(kv_bytes // block_bytes, most_blocks)


def _working_bytes(options: ReplicaOptions, config: DecoderConfig, dtype: torch.dtype) -> int:
    """Activations of the largest step: the residual stream, the widest module's input and output twice, since
    the allocator keeps what the last layer has given back, and the logits, also in float32."""
    shape = config.shape
    widest = 3 * shape.intermediate_size + (3 * shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim
    per_token = (4 * shape.hidden_size + 2 * widest) * dtype.itemsize
    per_logit = dtype.itemsize + 3 * torch.float32.itemsize
    return options.max_batch_tokens * per_token + options.max_running * shape.vocab_size * per_logit


def _share(option: str, text: str | None, total_bytes: int, default: float) -> int:
    return int(default * total_bytes) if text is None else parse_size(option, text, total_bytes)
