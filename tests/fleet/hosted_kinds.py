"""Processes of replicas on machines that are not as they should be.

A process imports this module: what it imports, each start of a process waits for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from caraserve_cli.bench.echo_hosted import EchoHosted
from caraserve_cli.core import Request
from caraserve_cli.fleet.hosted_replica import HostedReplica
from caraserve_cli.fleet.messages import HostFacts, MachineShare, ReplicaDescription
from caraserve_cli.fleet.options import ReplicaOptions
from caraserve_cli.fleet.shipped_adapters import Files


class FarAway(HostedReplica):
    """As on a machine that sees the base, and no adapters."""

    def where(self, paths: Sequence[str] = ()) -> HostFacts:
        missing = tuple(path for path in paths if path.endswith("adapters"))
        return replace(super().where(paths), missing_paths=missing)


class FarFromAll(HostedReplica):
    """As on a machine that sees neither."""

    def where(self, paths: Sequence[str] = ()) -> HostFacts:
        return replace(super().where(paths), host_name="far", missing_paths=tuple(paths))


class Unable(HostedReplica):
    """As on a machine that lacks a package."""

    def __init__(self) -> None:
        raise ModuleNotFoundError("No module named 'caraserve_cli'")


class Full(EchoHosted):
    """As on a machine with a full disk."""

    def submit(
        self, requests: Sequence[Request], origin_ms: float, shipped: Sequence[str] = (), *files: Files
    ) -> None:
        raise OSError(28, "No space left on device")


class Spread(EchoHosted):
    """As on machines of six cores, by turns of their starts two on `near`, one on `far`, and then `near`; its
    device is called by the cores that it has. They count their starts in the folder that they are asked for.
    """

    def where(self, paths: Sequence[str] = ()) -> HostFacts:
        number = 0
        while not self._is_first(Path(paths[0]) / str(number)):
            number += 1
        host_name = "far" if number == 2 else "near"
        return replace(super().where(paths), host_name=host_name, cores=tuple(range(6)))

    def start(
        self, options: ReplicaOptions, share: MachineShare, configs: Mapping[str, bytes] | None = None
    ) -> ReplicaDescription:
        return replace(super().start(options, share, configs), device=str(share.cores))

    def _is_first(self, path: Path) -> bool:
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            return False
        return True
