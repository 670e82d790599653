"""A replica that decodes more slowly on purpose, to try the regression gate with. Its engine knows nothing of
that."""

from __future__ import annotations

import time
from collections.abc import Callable

from caraserve_cli.events import EventSink, StepRecord
from caraserve_cli.fleet.local import LocalReplica
from caraserve_cli.fleet.options import ReplicaOptions
from caraserve_cli.fleet.replica import Outcome
from caraserve_cli.fleet.surroundings import Surroundings


class SlowedReplica(LocalReplica):
    """A replica on the CPU, where a step is over when `poll` returns: after one in which nobody prefills it
    keeps its core busy, so that the step takes `factor` times what it took.

    Args:
        now_s: a clock, in seconds.
    """

    def __init__(
        self,
        factor: float,
        surroundings: Surroundings,
        options: ReplicaOptions,
        clock_ms: Callable[[], float],
        events: EventSink,
        now_s: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._factor, self._events, self._now_s = factor, events, now_s
        self._only_decoded = False
        super().__init__(surroundings, options, clock_ms, self)

    def on_step(self, record: StepRecord) -> None:
        """See `EventSink`."""
        self._only_decoded = record.num_decode_tokens > 0 and not record.num_prefill_tokens
        self._events.on_step(record)

    def poll(self, most_wait_s: float = 0.0) -> list[Outcome]:
        """See `Replica`."""
        self._only_decoded = False
        began_s = self._now_s()
        outcomes = super().poll(most_wait_s)
        ended_s = self._now_s()
        while self._only_decoded and self._now_s() < ended_s + (self._factor - 1) * (ended_s - began_s):
            pass
        return outcomes
