"""The process of a replica that answers at once, to measure what is around it."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence

from caraserve_cli.core import Request
from caraserve_cli.fleet.hosted_replica import NEWS_INTERVAL_S, HostedReplica
from caraserve_cli.fleet.messages import MachineShare, ReplicaDescription, ReplicaNews
from caraserve_cli.fleet.options import ReplicaOptions
from caraserve_cli.fleet.shipped_adapters import Files
from tests.fleet.echo_crew import answer, description

MAX_RUNNING = 256


class EchoHosted(HostedReplica):
    """No engine."""

    def __init__(self) -> None:
        super().__init__()
        self._box: list[Request] = []
        self._filled = threading.Condition()

    def start(
        self, options: ReplicaOptions, share: MachineShare, configs: Mapping[str, bytes] | None = None
    ) -> ReplicaDescription:
        return description(max_running=MAX_RUNNING, kv_tokens=10**6)

    def submit(
        self, requests: Sequence[Request], origin_ms: float, shipped: Sequence[str] = (), *files: Files
    ) -> None:
        with self._filled:
            self._box += requests
            self._filled.notify_all()

    def poll(self, most_wait_s: float) -> ReplicaNews:
        with self._filled:
            self._filled.wait_for(lambda: self._box, most_wait_s)
        time.sleep(NEWS_INTERVAL_S)
        with self._filled:
            requests, self._box = self._box, []
        return ReplicaNews(
            outcomes=[answer(request) for request in requests], started=[each.id for each in requests]
        )
