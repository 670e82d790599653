"""The machine at hand: its device, the dtype that suits it, its memory, and how that is shared out.

Knows the options and the base's sizes, not the weights.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import torch

from caraserve_cli.config import EngineConfig, parse_size
from caraserve_cli.errors import OptionError
from caraserve_cli.fleet.options import ReplicaOptions
from caraserve_cli.model.attention import KvCache
from caraserve_cli.model.config import DecoderConfig

# Shares of the memory that is free before the base is loaded. They leave room for activations and for the
# rest of the machine. Chosen, not measured.
KV_SHARE = 0.2
DEVICE_ADAPTER_SHARE = 0.1
HOST_ADAPTER_SHARE = 0.25


def choose_device(name: str) -> torch.device:
    """The device an option means.

    Raises:
        OptionError: `cuda` is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise OptionError("--device: 'cuda' was asked for and torch sees no CUDA device; use --device cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def choose_dtype(name: str, device: torch.device, checkpoint_dtype: torch.dtype | None) -> torch.dtype:
    """The dtype an option means.

    `auto` is the checkpoint's, but on the CPU only what the CPU computes natively. Measured, 256 × 512
    product of 32 tokens, one thread, without AVX512-BF16: float32 156 µs, bfloat16 1276 µs; float16 ran at
    about 1 GFLOP/s a thread on a Zen 4.

    Raises:
        OptionError: float16 on the CPU.
    """
    if name != "auto":
        if name == "float16" and device.type == "cpu":
            raise OptionError("--dtype: float16 is unusably slow on the CPU; use bfloat16 or float32")
        return dtype_named(name)
    if device.type == "cpu" and not (checkpoint_dtype == torch.bfloat16 and _cpu_computes_bfloat16()):
        return torch.float32
    return checkpoint_dtype or torch.float32


def _cpu_computes_bfloat16() -> bool:
    flags = _cpuinfo("flags") or _cpuinfo("Features")
    return not {"amx_bf16", "avx512_bf16", "bf16"}.isdisjoint(flags.split())


def dtype_named(name: str) -> torch.dtype:
    """`float32`, `bfloat16` or `float16` as torch's dtype."""
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def describe_device(device: torch.device) -> str:
    """The device in words, for reports."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu_name()}, {torch.get_num_threads()} threads"


def _cpu_name() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(key: str) -> str:
    """The first value of `key` in /proc/cpuinfo, empty where there is none."""
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        if line.startswith(key):
            return line.partition(":")[2].strip()
    return ""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """An engine's sizes on a device, and the host's room for adapters."""

    engine: EngineConfig
    host_adapter_bytes: int


def plan_memory(
    options: ReplicaOptions, config: DecoderConfig, dtype: torch.dtype, device: torch.device
) -> MemoryPlan:
    """Share out the free memory. Options in bytes are taken as they are, fractions are of the free memory.

    Raises:
        OptionError: a size is malformed or too small to hold anything.
    """
    host_bytes = free_host_bytes()
    device_bytes = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else host_bytes
    block_bytes = KvCache.block_bytes(config.shape, options.kv_block_tokens, dtype)
    most_blocks = options.max_running * -(-config.context_tokens // options.kv_block_tokens)
    if options.kv_memory is None:
        num_kv_blocks = min(int(KV_SHARE * device_bytes) // block_bytes, most_blocks)
    else:
        num_kv_blocks = parse_size("--kv-memory", options.kv_memory, device_bytes) // block_bytes
    if num_kv_blocks < 1:
        raise OptionError(
            f"--kv-memory: one block of {options.kv_block_tokens} tokens takes {block_bytes} bytes"
        )
    return MemoryPlan(
        EngineConfig(
            num_kv_blocks=min(num_kv_blocks, most_blocks),
            adapter_memory_bytes=_share(
                "--adapter-memory", options.adapter_memory, device_bytes, DEVICE_ADAPTER_SHARE
            ),
            max_context_tokens=config.context_tokens,
            kv_block_tokens=options.kv_block_tokens,
            max_running=options.max_running,
            max_batch_tokens=options.max_batch_tokens,
            prefill_chunk_tokens=options.prefill_chunk_tokens,
            prefix_caching=options.prefix_caching,
        ),
        _share("--host-adapter-memory", options.host_adapter_memory, host_bytes, HOST_ADAPTER_SHARE),
    )


def _share(option: str, text: str | None, total_bytes: int, default: float) -> int:
    return int(default * total_bytes) if text is None else parse_size(option, text, total_bytes)


def free_host_bytes() -> int:
    """Host memory that can be taken without swapping, in bytes."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
