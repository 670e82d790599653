"""More than one who is told of an engine's steps."""

from __future__ import annotations

from caraserve_cli.events import EventSink, StepRecord


class StepListeners:
    """An `EventSink` that tells several, in their order."""

    def __init__(self, *sinks: EventSink) -> None:
        self._sinks = sinks

    def on_step(self, record: StepRecord) -> None:
        for sink in self._sinks:
            sink.on_step(record)
