"""The machine at hand: its device, the dtype that suits it, its memory."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

from caraserve_cli.errors import OptionError
from caraserve_cli.fleet.options import DtypeName


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


def dtype_name(dtype: torch.dtype) -> DtypeName:
    """The reverse of `dtype_named`."""
    names: dict[torch.dtype, DtypeName] = {
        torch.float32: "float32",
        torch.bfloat16: "bfloat16",
        torch.float16: "float16",
    }
    return names[dtype]


def describe_device(device: torch.device) -> str:
    """The device in words, for reports."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    num_threads = torch.get_num_threads()
    return f"{_cpu_name()}, {num_threads} thread{'' if num_threads == 1 else 's'}"


def _cpu_name() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(key: str) -> str:
    """The first value of `key` in /proc/cpuinfo, empty where there is none."""
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        if line.startswith(key):
            return line.partition(":")[2].strip()
    return ""


def free_device_bytes(device: torch.device) -> int:
    """Memory of a GPU that nobody has taken."""
    return torch.cuda.mem_get_info(device)[0]


def free_host_bytes(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Host memory that can be taken without swapping and within a container's limit, in bytes."""
    free_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free_bytes = int(line.split()[1]) * 1024
    limit, used = cgroup / "memory.max", cgroup / "memory.current"
    if limit.exists() and used.exists() and (limit_text := limit.read_text().strip()) != "max":
        free_bytes = min(free_bytes, max(0, int(limit_text) - int(used.read_text())))
    return free_bytes
