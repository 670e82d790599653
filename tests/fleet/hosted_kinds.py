"""Processes of replicas on machines that are not as they should be.

A process imports this module: what it imports, each start of a process waits for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from caraserve_cli.bench.echo_hosted import EchoHosted
from caraserve_cli.core import Request
from caraserve_cli.fleet.hosted_replica import HostedReplica
from caraserve_cli.fleet.messages import HostFacts
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
