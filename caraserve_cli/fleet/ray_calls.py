"""What actors were asked and have not answered yet, and who should have answered long ago."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError

from caraserve_cli.errors import CaraServeError

# Until all processes are there; a busy machine takes a while to import torch. Chosen, not measured.
PLACES_S = 300.0
# Who answers nothing for so long is taken for dead: it is stopped, or its machine is out of reach. A base
# is loaded in less. Chosen, not measured.
MOST_SILENCE_S = {"where": PLACES_S, "start": 1800.0, "submit": 1800.0, "poll": 60.0}

# What Ray says of an actor that was not made.
_CREATION = "error raised in its creation task"
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")

# Between two looks for answers a driver does what takes milliseconds. Chosen, not measured.
_UNSEEN_S = 2.0

Stage = Literal["where", "start", "submit", "poll"]


class Call(NamedTuple):
    """What a replica was asked, and since when (monotonic seconds)."""

    replica: int
    stage: Stage
    since_s: float

    @property
    def is_overdue(self) -> bool:
        """Whether its answer has been waited for for too long."""
        return time.monotonic() - self.since_s > MOST_SILENCE_S[self.stage]


class RayCalls:
    """Calls by Ray's reference of their answer."""

    def __init__(self) -> None:
        self._pending: dict[Any, Call] = {}
        self._looked_s = time.monotonic()

    def add(self, answer: Any, replica: int, stage: Stage) -> None:
        """A replica was asked something."""
        self._pending[answer] = Call(replica, stage, time.monotonic())

    def take(self, answer: Any) -> Call | None:
        """Take out a call that was answered; None if nobody waits for it any more."""
        return self._pending.pop(answer, None)

    def wait(self, most_wait_s: float) -> Sequence[Any]:
        """Wait for an answer, and return all that are there."""
        asked = list(self._pending)
        if not asked:
            time.sleep(most_wait_s)
            self._looked_s = time.monotonic()
            return []
        ready, _ = ray.wait(asked, num_returns=1, timeout=most_wait_s)
        if ready:
            ready, _ = ray.wait(asked, num_returns=len(asked), timeout=0)
        self._excuse(most_wait_s)
        return list(ready)

    def _excuse(self, most_wait_s: float) -> None:
        """That nobody looked for answers, as this process was stopped or was busy, says nothing of who owes
        them: that time does not count."""
        now_s = time.monotonic()
        unseen_s = now_s - self._looked_s - most_wait_s
        self._looked_s = now_s
        if unseen_s > _UNSEEN_S:
            self._pending = {
                answer: call._replace(since_s=min(now_s, call.since_s + unseen_s))
                for answer, call in self._pending.items()
            }

    def longest_s(self) -> float:
        """For how long the oldest answer has been waited for; 0 without any."""
        now_s = time.monotonic()
        return now_s - min((call.since_s for call in self._pending.values()), default=now_s)

    def overdue(self) -> list[Call]:
        """The first of each replica that should have answered long ago."""
        late: dict[int, Call] = {}
        for call in self._pending.values():
            if call.is_overdue:
                late.setdefault(call.replica, call)
        return list(late.values())

    def forget(self, replica: int) -> None:
        """Nothing more is heard of a replica."""
        for answer in [answer for answer, call in self._pending.items() if call.replica == replica]:
            del self._pending[answer]

    def clear(self) -> None:
        """Nothing more is heard of anybody."""
        self._pending.clear()


def why_unanswered(error: RayError | CaraServeError) -> str:
    """Why an actor did not answer, in a line."""
    if isinstance(error, RayTaskError):
        return " ".join(f"{type(error.cause).__name__}: {error.cause}".split())
    if isinstance(error, OutOfMemoryError):  # Ray's own words fill a screen
        return "its machine ran out of memory, and Ray ended it"
    if isinstance(error, RayActorError):
        words = str(error).strip()
        if _CREATION not in words:
            return "its process ended"
        # A traceback in colours, of which the last line says what it was.
        return f"its process could not begin: {_COLOURS.sub('', words).splitlines()[-1].strip()}"
    return " ".join(str(error).split())
