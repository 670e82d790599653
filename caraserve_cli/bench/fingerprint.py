"""On what was measured: where two recordings differ, their absolute figures are not compared.

Versions of libraries are no part of it, since a slower one is a regression worth seeing; they are told beside
the verdict where they differ. Knows no torch: its version is that of the installed package.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path

_CPU_INFO = Path("/proc/cpuinfo")
# Of a result's own facts.
_FACTS = ("device", "dtype", "num_threads")


def machine_fingerprint(result: Mapping[str, object]) -> dict[str, str]:
    """The hardware that a result was measured on, as texts to be compared.

    Args:
        result: what `--json` writes.
    """
    facts = {key: str(result[key]) for key in _FACTS if result.get(key) is not None}
    return {
        **facts,
        "cpu": _cpu_model(),
        "num_cores": str(len(os.sched_getaffinity(0))),
        "memory_gib": str(round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)),
        "architecture": platform.machine(),
        "python": ".".join(platform.python_version_tuple()[:2]),
        "torch": str(_versions(result).get("torch", "")),
    }


def find_differences(before: Mapping[str, str], now: Mapping[str, str]) -> tuple[str, ...]:
    """One phrase for each entry that is not the same in both."""
    return tuple(
        f"{key} was {before.get(key, 'unknown')}, is {now.get(key, 'unknown')}"
        for key in dict.fromkeys([*before, *now])
        if before.get(key) != now.get(key)
    )


def _versions(result: Mapping[str, object]) -> Mapping[str, object]:
    versions = result.get("versions")
    return versions if isinstance(versions, Mapping) else {}


def result_versions(result: Mapping[str, object]) -> dict[str, str]:
    """Versions of the packages that a result names."""
    return {str(name): str(number) for name, number in _versions(result).items()}


def _cpu_model() -> str:
    """As the kernel calls it, with model and stepping, which tell machines of one name apart."""
    try:
        lines = _CPU_INFO.read_text(errors="replace").split("\n\n", 1)[0].splitlines()
    except OSError:
        return platform.processor()
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return " ".join(told[key] for key in ("model name", "cpu family", "model", "stepping") if key in told)
