"""A fleet whose replicas answer at once or when they are told to, and die when told to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from caraserve_cli.bench.echo import numbered_adapter
from caraserve_cli.core import Request
from caraserve_cli.fleet.fleet import Fleet
from caraserve_cli.fleet.local import NoEvents
from caraserve_cli.fleet.messages import Outcome
from caraserve_cli.placement.catalogue import placement
from tests.fleet.mortal_crew import MortalCrew


class Clock:
    def __init__(self, tick_ms: float = 1.0) -> None:
        self.now_ms, self.tick_ms = 0.0, tick_ms

    def __call__(self) -> float:
        self.now_ms += self.tick_ms
        return self.now_ms


def ignore_note(_: str) -> None:
    """Who died is seen in the account too."""


def start(crew: MortalCrew, name: str = "most-idle", on_note: Callable[[str], None] = ignore_note) -> Fleet:
    return Fleet(crew, placement(name), numbered_adapter, Clock(), NoEvents(), on_note)


def finish(fleet: Fleet) -> list[Outcome]:
    outcomes = []
    for _ in range(10_000):
        outcomes += fleet.poll()
        if not fleet.num_unfinished:
            return outcomes
    raise AssertionError("it does not end")


def assert_each_once(outcomes: Sequence[Outcome], requests: Sequence[Request]) -> None:
    assert Counter(outcome.request.id for outcome in outcomes) == Counter(request.id for request in requests)
