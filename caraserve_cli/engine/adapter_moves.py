"""What a plan does to the adapters on the device before its step is launched, and who cannot go on then."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from caraserve_cli.core import Failure, Sequence, SequenceStatus
from caraserve_cli.engine.depot import AdapterDepot
from caraserve_cli.engine.scheduler import Scheduler
from caraserve_cli.errors import AdapterError, RowErrorCode
from caraserve_cli.step_plan import AdapterEviction, AdapterLoad, AdapterMove, StepPlan


class AdapterMoves:
    """Makes them.

    Args:
        depot: the adapters of the runner.
        scheduler: whose plans they are of.
        end: called with a sequence that fails.
    """

    def __init__(self, depot: AdapterDepot, scheduler: Scheduler, end: Callable[[Sequence], object]) -> None:
        self._depot, self._scheduler, self._end = depot, scheduler, end

    def make(self, plan: StepPlan) -> tuple[StepPlan, list[Failure]]:
        """Evict, move, load and lend as planned; the plan without those whose adapter cannot be loaded any
        more, who fail alone."""
        failures: list[Failure] = []
        empty_slots: set[int] = set()  # a failed load leaves nothing to move
        for op in plan.pool_ops:
            match op:
                case AdapterLoad():
                    try:
                        self._depot.load(op)
                    except AdapterError as error:
                        empty_slots.add(op.adapter_slot)
                        failures += self._fail_users(op.adapter, error)
                case AdapterMove() if op.adapter_slot not in empty_slots:
                    self._depot.move(op)
                case AdapterEviction():  # never of what this plan loads: that is in use
                    self._depot.evict(op.adapter_slot)
        failures += self._lend(plan)
        return (_without(plan, failures, empty_slots) if failures else plan), failures

    def _lend(self, plan: StepPlan) -> list[Failure]:
        """As planned; requests whose adapter cannot be read any more fail alone."""
        failures: list[Failure] = []
        borrowers = {chunk.lent_slot: chunk.sequence for chunk in (*plan.chunks, *plan.beside)}
        for loan in plan.loans:
            borrower = borrowers[loan.adapter_slot]
            if borrower.status is SequenceStatus.FINISHED:
                continue  # with others whose adapter could not be loaded
            try:
                self._depot.lend(loan)
            except AdapterError as error:
                failures.append(self._fail(borrower, error))
        return failures

    def _fail_users(self, adapter: str, error: AdapterError) -> list[Failure]:
        failures = [self._fail(user, error) for user in self._scheduler.users_of(adapter)]
        self._scheduler.residency.discard(adapter)
        return failures

    def _fail(self, sequence: Sequence, error: AdapterError) -> Failure:
        self._end(sequence)
        return Failure(sequence.request, RowErrorCode.ADAPTER_REFUSED, str(error))


def _without(plan: StepPlan, failures: list[Failure], empty_slots: set[int]) -> StepPlan:
    """The plan without requests that failed and loads that left their slots empty."""
    failed = {failure.request.id for failure in failures}
    chunks, beside = (
        tuple(chunk for chunk in planned if chunk.sequence.request.id not in failed)
        for planned in (plan.chunks, plan.beside)
    )
    pool_ops = tuple(
        op for op in plan.pool_ops if not (isinstance(op, AdapterLoad) and op.adapter_slot in empty_slots)
    )
    return dataclasses.replace(plan, chunks=chunks, beside=beside, pool_ops=pool_ops)
