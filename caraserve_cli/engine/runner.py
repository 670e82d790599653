"""What an engine needs of a model runner, whatever computes there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from caraserve_cli.engine.depot import AdapterDepot
from caraserve_cli.engine.steps_under_way import BesideResult, StepResult
from caraserve_cli.step_plan import ScheduledChunk, StepPlan


class BesideRunner(Protocol):
    """Computes steps beside those of a runner, of up to `max_tokens` tokens."""

    @property
    def max_tokens(self) -> int: ...

    def launch(self, chunks: Sequence[ScheduledChunk]) -> BesideResult:
        """Start computing chunks, none of which has a token under way, beside the plans launched before and
        after; no other such step must be under way.

        Raises:
            DeviceMemoryError: as `Runner.launch`.
        """
        ...


class Runner(Protocol):
    """What the engine needs of a model runner.

    `max_in_flight`: plans that may be under way at once; with more than 1 the runner feeds a sequence's
    pending token to its next step by itself. `beside`: what computes steps beside the others, None where
    nothing does. `adapters`: those it computes with.
    """

    @property
    def max_in_flight(self) -> int: ...

    @property
    def beside(self) -> BesideRunner | None: ...

    @property
    def adapters(self) -> AdapterDepot: ...

    def launch(self, plan: StepPlan) -> StepResult:
        """Start computing a plan. Plans are computed in the order of their launches.

        Raises:
            DeviceMemoryError: the device's memory does not hold it; it is as if it had not been launched.
        """
        ...
