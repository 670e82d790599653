"""The runner of the first of several processes that hold a base: it has the others compute what it
computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from caraserve_cli.engine.gpu_runner import GpuRunner
from caraserve_cli.engine.leading_adapters import LeadingAdapters
from caraserve_cli.engine.model_runner import ModelRunner
from caraserve_cli.engine.orders import ComputeStep, Followers, WarmUp
from caraserve_cli.engine.steps_under_way import StepResult
from caraserve_cli.errors import LostProcessError
from caraserve_cli.model.sampler import Sampled
from caraserve_cli.step_plan import AssistOutcome, ScheduledChunk, StepPlan


class LeadingRunner:
    """Implements `engine.Runner`. It has the tokens chosen here, once.

    A step that one process cannot compute ends the run: the others are in the middle of it.

    Args:
        runner: of this process's part.
        followers: the others.

    Attributes:
        adapters: see `Runner`.
        beside: none: the others compute one step after the other.
    """

    beside = None

    def __init__(self, runner: ModelRunner | GpuRunner, followers: Followers) -> None:
        self._runner, self._followers = runner, followers
        self.max_in_flight = runner.max_in_flight
        self.adapters = LeadingAdapters(runner.adapters, followers)

    def warm_up(self, used_groups: frozenset[int]) -> None:
        """See `GpuRunner.warm_up`; a CPU has nothing to compile."""
        if isinstance(self._runner, GpuRunner):
            self._followers.tell(WarmUp(used_groups))
            with _explained(self._followers):
                self._runner.warm_up(used_groups)

    def close(self) -> None:
        """Give back what holds collectives; nothing must be under way."""
        if isinstance(self._runner, GpuRunner):
            self._runner.drop_graphs()

    def launch(self, plan: StepPlan) -> StepResult:
        """See `Runner`.

        Raises:
            LostProcessError: a process, perhaps this one, cannot go on.
        """
        return _WatchedStep(self._launch(plan), self._followers)

    def _launch(self, plan: StepPlan) -> StepResult:
        pool_ops = self.adapters.take_pool_ops()
        if isinstance(self._runner, GpuRunner):
            step = self._runner.lay_out(plan)
            self._followers.tell(ComputeStep(pool_ops, step.for_followers()))
            with _explained(self._followers):
                return self._runner.compute(step)
        batch = self._runner.lay_out(plan)
        self._followers.tell(ComputeStep(pool_ops, batch.for_followers()))
        with _explained(self._followers):
            return self._runner.compute(batch)


class _WatchedStep:
    """The `StepResult` of a step that all compute: what came of it does not count if one has ended."""

    def __init__(self, result: StepResult, followers: Followers) -> None:
        self._result, self._followers = result, followers

    def sampled(self) -> list[tuple[ScheduledChunk, Sampled]]:
        """See `StepResult`.

        Raises:
            LostProcessError: a process has ended.
        """
        with _explained(self._followers):
            sampled = self._result.sampled()
        self._followers.check()
        return sampled

    @property
    def adapter_copy_ms(self) -> float:
        """See `StepResult`."""
        return self._result.adapter_copy_ms

    @property
    def assist_outcome(self) -> AssistOutcome:
        """See `StepResult`."""
        return self._result.assist_outcome


@contextmanager
def _explained(followers: Followers) -> Iterator[None]:
    """What goes wrong in common work has its reason in some process."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise LostProcessError(
            "the first GPU's memory does not hold a step of --tensor-parallel; lower --gpu-memory, so that "
            "more is left for steps"
        ) from error
    except (LostProcessError, RuntimeError) as error:
        explanation = followers.explain(error)
        if explanation is error:
            raise
        raise explanation from error
