"""A step's plan in the making, and what it still has room for. Decides nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

from caraserve_cli.coldstart.arrival import Decision
from caraserve_cli.step_plan import AdapterLoan, PoolOp, ScheduledChunk, StepPlan


@dataclass(slots=True)
class PlanDraft:
    """One plan.

    Attributes:
        budget_tokens: that it may still take.
        assisted_tokens: of them, those that CPU workers may still be given.
        beside_tokens: that may still be computed beside the step; none while something is.
        prompt_tokens: that it has in chunks of more than one token; decoding takes one.
    """

    budget_tokens: int
    assisted_tokens: int
    beside_tokens: int = 0
    chunks: list[ScheduledChunk] = field(default_factory=list)
    beside: list[ScheduledChunk] = field(default_factory=list)
    pool_ops: list[PoolOp] = field(default_factory=list)
    loans: list[AdapterLoan] = field(default_factory=list)
    num_preempted: int = 0
    num_cached_tokens: int = 0
    prompt_tokens: int = 0

    @property
    def num_tokens(self) -> int:
        """That it has."""
        return sum(chunk.num_tokens for chunk in self.chunks)

    def most_tokens(self, decision: Decision) -> int:
        """Of a further chunk whose adapter comes in this way."""
        most_tokens = self.beside_tokens if decision.beside_ms else self.budget_tokens
        if not decision.cpu_layers:
            return most_tokens
        # What CPU workers share with the device is for one step at a time.
        others = self.chunks if decision.beside_ms else self.beside
        return 0 if any(chunk.cpu_layers for chunk in others) else min(most_tokens, self.assisted_tokens)

    def add(self, chunk: ScheduledChunk, decision: Decision) -> None:
        """Take in a chunk, which must not have more tokens than there is room for."""
        if decision.beside_ms:
            self.beside.append(chunk)
            self.beside_tokens -= chunk.num_tokens
        else:
            self.chunks.append(chunk)
            self.budget_tokens -= chunk.num_tokens
            if chunk.num_tokens > 1:
                self.prompt_tokens += chunk.num_tokens
        if chunk.cpu_layers:
            self.assisted_tokens -= chunk.num_tokens

    def freeze(self) -> StepPlan:
        """The plan."""
        return StepPlan(
            tuple(self.chunks),
            tuple(self.pool_ops),
            self.num_preempted,
            self.num_cached_tokens,
            tuple(self.beside),
            tuple(self.loans),
        )
