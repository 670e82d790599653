"""The machine of a replica's process, and what each of several replicas on one machine may use of it."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from caraserve_cli import __version__
from caraserve_cli.fleet.messages import HostFacts, MachineShare

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
THREADS_VARIABLE = "OMP_NUM_THREADS"


def host_facts(paths: Sequence[str] = ()) -> HostFacts:
    """The facts of this process's machine; `paths` are looked for."""
    # It imports torch, for which only who is about to use it should wait.
    from caraserve_cli.fleet.machine import free_host_bytes

    return HostFacts(
        host_name=platform.node(),
        boot_id=_BOOT_ID.read_text().strip() if _BOOT_ID.exists() else "",
        pid=os.getpid(),
        cores=tuple(sorted(os.sched_getaffinity(0))),
        free_bytes=free_host_bytes(),
        version=__version__,
        missing_paths=tuple(path for path in paths if not Path(path).exists()),
    )


def asked_threads() -> int | None:
    """How many threads the user wants torch to have, if anything says it."""
    text = os.environ.get(THREADS_VARIABLE, "")
    return int(text) if text.isdecimal() and int(text) > 0 else None


def share_out(
    cores: Sequence[int], free_bytes: int, index: int, num_replicas: int, num_threads: int | None
) -> MachineShare:
    """What the replica with an index, of several on a machine, may use.

    Neighbouring cores stay together. With fewer cores than replicas all share all.

    Args:
        cores: of the machine.
        free_bytes: of host memory, before any replica has taken some.
        index: of the replica among those on the machine, from 0.
        num_replicas: on the machine.
        num_threads: of torch, that the user asked for; None for one a core.
    """
    own = list(cores)
    if num_replicas <= len(cores):
        first, end = (len(cores) * place // num_replicas for place in (index, index + 1))
        own = own[first:end]
    most_threads = max(1, len(cores) // num_replicas)
    return MachineShare(
        cores=tuple(own),
        num_threads=min(most_threads, num_threads or most_threads),
        host_bytes=free_bytes // num_replicas,
    )


def share_beside(
    others: Sequence[MachineShare], cores: Sequence[int], free_bytes: int, num_threads: int | None
) -> MachineShare:
    """What one replica more may use of a machine where others have their shares, which they keep: of as many
    parts of the cores as there are replicas then, the one of which they have least.

    Args:
        others: of those that are there.
        cores: of the machine.
        free_bytes: of host memory, that the others have not taken.
        num_threads: as in `share_out`.
    """
    num_replicas = len(others) + 1
    num_users = Counter(core for share in others for core in share.cores)
    parts = (
        share_out(cores, free_bytes * num_replicas, index, num_replicas, num_threads)
        for index in range(num_replicas)
    )
    return min(parts, key=lambda part: sum(num_users[core] for core in part.cores))
