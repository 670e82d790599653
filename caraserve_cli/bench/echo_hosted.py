"""The process of a replica that answers at once (see `echo`), where a crew has processes. Knows no Ray."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence

from caraserve_cli.bench.echo import echo_description, echo_news
from caraserve_cli.core import Request
from caraserve_cli.fleet.hosted_replica import NEWS_INTERVAL_S, HostedReplica
from caraserve_cli.fleet.messages import MachineShare, ReplicaDescription, ReplicaNews
from caraserve_cli.fleet.options import ReplicaOptions
from caraserve_cli.fleet.shipped_adapters import Files


class EchoHosted(HostedReplica):
    """See `HostedReplica`: without an engine, it tells news as seldom as one that has an engine."""

    def __init__(self) -> None:
        super().__init__()
        self._unanswered: list[Request] = []
        self._filled = threading.Condition()

    def start(
        self, options: ReplicaOptions, share: MachineShare, configs: Mapping[str, bytes] | None = None
    ) -> ReplicaDescription:
        """See `HostedReplica.start`."""
        return echo_description(max_running=options.max_running)

    def submit(
        self, requests: Sequence[Request], origin_ms: float, shipped: Sequence[str] = (), *files: Files
    ) -> None:
        """See `HostedReplica.submit`."""
        with self._filled:
            self._unanswered += requests
            self._filled.notify_all()

    def poll(self, most_wait_s: float) -> ReplicaNews:
        """See `HostedReplica.poll`."""
        with self._filled:
            self._filled.wait_for(lambda: self._unanswered, most_wait_s)
        time.sleep(NEWS_INTERVAL_S)
        with self._filled:
            requests, self._unanswered = self._unanswered, []
        return echo_news(requests)
