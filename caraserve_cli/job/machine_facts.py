"""The machine and the packages that a run used, for its report."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version

_PACKAGES = ("torch", "transformers", "triton")


def machine_facts() -> dict[str, str | int]:
    """Cores that this process may use, memory, system and versions."""
    return {
        "cpu_cores": len(os.sched_getaffinity(0)),
        "host_memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{package: version(package) for package in _PACKAGES},
    }
