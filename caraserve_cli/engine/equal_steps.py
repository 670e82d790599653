"""Decoding steps that are all alike: as long as every running sequence gets one token a step and nothing else
happens, many steps can be booked at once. A simulator passes over them in one event.
"""

from __future__ import annotations

from collections.abc import Iterable

from caraserve_cli.config import EngineConfig
from caraserve_cli.core import Sequence
from caraserve_cli.engine.adapter_access import AdapterAccess
from caraserve_cli.engine.batch_limit import BatchLimit
from caraserve_cli.engine.block_pool import BlockPool
from caraserve_cli.engine.cold_starts import ColdStarts
from caraserve_cli.engine.holdings import Holdings
from caraserve_cli.engine.sequence_books import SequenceBooks
from caraserve_cli.step_plan import ScheduledChunk, StepPlan


class EqualSteps:
    """The next of a scheduler's plans, as far as they are such steps.

    Args:
        config: sizes and limits.
        books: who waits and runs.
        holdings: of the sequences.
        blocks: of the cache.
        batch_limit: told of every step.
        cold_starts: say whether all adapters are there.
        access: told of plans that are passed over.
    """

    def __init__(
        self,
        config: EngineConfig,
        books: SequenceBooks,
        holdings: Holdings,
        blocks: BlockPool,
        batch_limit: BatchLimit,
        cold_starts: ColdStarts,
        access: AdapterAccess,
    ) -> None:
        self._config, self._books, self._holdings, self._blocks = config, books, holdings, blocks
        self._batch_limit, self._cold_starts, self._access = batch_limit, cold_starts, access
        self._running, self._waiting = books.running, books.waiting

    def num_next(self, most_steps: int, *, tight: bool = True) -> int:
        """How many of the next plans, up to `most_steps`, only decode one token of every running sequence:
        the first now and the others at whatever time, if until then nobody comes or ends and no adapter
        arrives. 0 where that cannot be told without planning. Unless plans may be `tight`, none after them
        is (`Scheduler.is_tight`)."""
        self._cold_starts.begin_plan()
        if self._waiting and len(self._running) < self._config.max_running:
            return 0
        if self._batch_limit.num_tokens < len(self._running):
            return 0
        if not self._cold_starts.may_all_decode(self._running):
            return 0
        num_steps = self._fewest_tokens_left(most_steps)
        if num_steps <= 0:
            return 0
        return self._num_with_blocks(num_steps, self._blocks.num_free - (0 if tight else len(self._running)))

    def plan(self) -> StepPlan:
        """The next of the plans that `num_next` told, whoever has come since."""
        for sequence in self._running:
            self._holdings.give_blocks(sequence, 1)
        self._access.pass_plans(1, is_anyone_waiting=bool(self._waiting))
        return StepPlan(
            tuple(
                ScheduledChunk(each, each.num_computed_tokens, 1, yields_token=True) for each in self._running
            )
        )

    def book(self, num_steps: int, token_id: int = 0) -> None:
        """Do what as many rounds of `Scheduler.plan`, `Scheduler.commit` and taking a token of every running
        sequence would, at most those that `num_next` told. Who has its last token is then `ENDING`, as after
        `Scheduler.commit`.

        Args:
            num_steps: at least 1.
            token_id: stands for every token, for nobody knows it.
        """
        self._access.pass_plans(num_steps, is_anyone_waiting=bool(self._waiting))
        for _ in range(num_steps):
            self._batch_limit.note_step()
        for sequence in self._running:
            self._holdings.give_blocks(sequence, num_steps)
            sequence.num_computed_tokens += num_steps
            sequence.token_ids += (token_id,) * num_steps
            self._holdings.remember(sequence)
        for sequence in [each for each in self._running if each.is_ending]:
            self._books.begin_end(sequence)

    def _fewest_tokens_left(self, most_steps: int) -> int:
        """Of any running sequence, at most `most_steps`; 0 unless each of them only decodes."""
        num_steps = most_steps if self._running else 0
        for sequence in self._running:
            if sequence.is_unchecked or sequence.num_tokens - sequence.num_computed_tokens != 1:
                return 0
            if sequence.num_computed_tokens < sequence.num_prompt_tokens:  # the last token of a long prompt
                return 0
            num_outputs = sequence.num_tokens - sequence.num_prompt_tokens
            num_steps = min(num_steps, sequence.max_output_tokens - num_outputs)
        return num_steps

    def _num_with_blocks(self, num_steps: int, num_free: int) -> int:
        """How many of `num_steps` steps can be done with so many more blocks, so that nobody is preempted."""
        # Nobody needs more blocks than this; mostly there are as many.
        if len(self._running) * -(-num_steps // self._config.kv_block_tokens) <= num_free:
            return num_steps
        fewest, most = 0, num_steps
        while fewest < most:
            middle = (fewest + most + 1) // 2
            if _num_missing(self._running, self._config.kv_block_tokens, middle) <= num_free:
                fewest = middle
            else:
                most = middle - 1
        return fewest


def _num_missing(running: Iterable[Sequence], block_tokens: int, num_tokens: int) -> int:
    """Blocks that the next `num_tokens` tokens of all of them need."""
    return sum(
        -(-(sequence.num_computed_tokens + num_tokens) // block_tokens) - len(sequence.block_table)
        for sequence in running
    )
