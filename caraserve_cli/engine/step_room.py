"""What running requests can bear of a step: how long it may take, and who may join their batch, so that
their TPOT bounds hold by prediction.

TPOT is a mean over all of an answer's tokens after the first. So one long step breaks nothing if those before
it were shorter than the bound, and little if those after it will be: a request may use what it has saved, and
borrow a part of what it will save.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from caraserve_cli.core import Sequence
from caraserve_cli.engine.due_times import is_in_time
from caraserve_cli.engine.plan_draft import PlanDraft
from caraserve_cli.perf.batch_load import NO_RANKS, BatchLoad, RankSums
from caraserve_cli.perf.step_load import StepLoad
from caraserve_cli.perf.step_model import StepModel

# Fewest tokens of a prompt in a step, however tight the bounds are: a prompt that was begun goes on. A step
# of so few is bound by reading the base's weights, as decoding is. Chosen, not measured.
MIN_CHUNK_TOKENS = 64

# The share of what a running request will save by its longest end that one step may use up now. The rest is
# for later prompts, and for answers that end before. Chosen, not measured.
BORROWED_SHARE = 0.25

# The share of a TPOT bound that is planned for: predictions are a little wrong, and whoever is planned up to
# its bound ends just above it as often as below. By simulation, from an H100's profile
# (`machine-profile-kernels-h100.json`), 300 requests of 128 and 128 tokens, bounds of 500 ms and 9.117 ms, at
# 36 / 40 / 44 requests/s the bounds met were 91 / 76 / 66% with 1, 100 / 98 / 94% with 0.99, 100 / 97 / 91%
# with 0.98, and 100 / 93 / 87% with 0.95; the rest of 0.98 is for errors that a simulation has not.
PLANNED_SHARE = 0.98


class StepRoom:
    """The room in one plan. Made only where a plan has a prompt, or might.

    Args:
        model: of the replica's steps.
        running: what runs now.
        lora_ranks: adapter → its rank.
        now_ms: on the run's clock.
        max_step_tokens: the most tokens of a step.
    """

    def __init__(
        self,
        model: StepModel,
        running: Iterable[Sequence],
        lora_ranks: Mapping[str, int],
        now_ms: float,
        max_step_tokens: int,
    ) -> None:
        self._model, self._lora_ranks, self._now_ms = model, lora_ranks, now_ms
        self._adapters: set[str] = set()
        self._ranks = NO_RANKS
        self._num_running = self._num_decoding = self._kv_tokens = 0
        is_under_way = False
        bounded: list[Sequence] = []
        for sequence in running:
            self._count(sequence)
            is_under_way = is_under_way or sequence.num_pending_tokens > 0
            if sequence.timings.first_token_ms is not None:
                self._num_decoding += 1
                if sequence.request.bounds.tpot_slo_ms is not None and not sequence.is_ending:
                    bounded.append(sequence)
        self.token_ms = self._batch_ms(self._num_running, self._ranks, self._kv_tokens)
        self._start_ms = now_ms + (self.token_ms if is_under_way else 0.0)
        # The longest this step, and all later steps, may take.
        self._step_ms = self._bearable_ms = math.inf
        for sequence in bounded:
            if is_in_time(sequence, now_ms):
                self._note_bound(sequence)
        self._is_full = self._bears_nobody()
        self._prompt_tokens = self._find_prompt_tokens(max_step_tokens)

    def prompt_tokens(self, sequence: Sequence, draft: PlanDraft) -> int:
        """Of a sequence's prompt, what the step has room for besides what is in it; 0 if that is less than is
        worth a chunk."""
        room = self._prompt_tokens - draft.prompt_tokens
        num_left = sequence.num_tokens - sequence.num_computed_tokens
        return room if room >= min(num_left, MIN_CHUNK_TOKENS) else 0

    def bears(self, sequence: Sequence) -> bool:
        """Whether a waiting sequence may join: the batch's decoding steps with it and its adapter, for as
        long as all of it decodes, break no bound that would hold without it, nor its own."""
        if self._is_full or not self._num_running:
            return not self._num_running
        most_ms = min(self._bearable_ms, self._own_bound_ms(sequence))
        if most_ms == math.inf:
            return True
        ranks, kv_tokens = self._ranks_with(sequence), self._kv_tokens + sequence.num_tokens
        return self._batch_ms(self._num_running + 1, ranks, kv_tokens) <= most_ms

    def note_admitted(self, sequence: Sequence) -> None:
        """A sequence has joined the batch."""
        self._count(sequence)
        self._bearable_ms = min(self._bearable_ms, self._own_bound_ms(sequence))
        self._is_full = self._bears_nobody()

    def _bears_nobody(self) -> bool:
        """Whether even one more request without a new adapter would break a bound: those that wait need not
        be looked at one by one."""
        if self._bearable_ms == math.inf:
            return False
        return self._batch_ms(self._num_running + 1, self._ranks, self._kv_tokens) > self._bearable_ms

    def _own_bound_ms(self, sequence: Sequence) -> float:
        """What a sequence that has no token yet needs of steps; infinite if it loses nothing any more, or
        would not have it even alone."""
        bound_ms, adapter = sequence.request.bounds.tpot_slo_ms, sequence.request.adapter
        if bound_ms is None or not is_in_time(sequence, self._now_ms):
            return math.inf
        lora_rank = 0 if adapter is None else self._lora_ranks[adapter]
        alone = RankSums(int(adapter is not None), lora_rank, lora_rank)
        alone_ms = self._batch_ms(1, alone, sequence.num_tokens)
        return next((each for each in (PLANNED_SHARE * bound_ms, bound_ms) if alone_ms <= each), math.inf)

    def _count(self, sequence: Sequence) -> None:
        self._num_running += 1
        self._kv_tokens += sequence.num_tokens
        if sequence.request.adapter is not None:
            self._ranks = self._ranks_with(sequence)
            self._adapters.add(sequence.request.adapter)

    def _note_bound(self, sequence: Sequence) -> None:
        """A decoding sequence with a TPOT bound that can still be met narrows the room: as far as is planned
        for, or to the bound itself if it has used that up."""
        bound_ms = sequence.request.bounds.tpot_slo_ms
        assert bound_ms is not None
        if not self._narrow(sequence, PLANNED_SHARE * bound_ms):
            self._narrow(sequence, bound_ms)

    def _narrow(self, sequence: Sequence, bound_ms: float) -> bool:
        """Have a sequence's mean time per token stay within a bound; whether it can."""
        first_ms = sequence.timings.first_token_ms
        assert first_ms is not None
        num_outputs = sequence.num_tokens - sequence.num_prompt_tokens
        num_left = sequence.max_output_tokens - num_outputs
        spare_ms = first_ms + num_outputs * bound_ms - self._start_ms  # until its next token is due
        to_last_ms = spare_ms + (num_left - 1) * bound_ms
        if num_left * self.token_ms > to_last_ms:
            if spare_ms < self.token_ms:
                return False  # neither if it goes on to its longest, nor if it ends now
        else:
            self._bearable_ms = min(self._bearable_ms, to_last_ms / num_left)
        saved_ms = (num_left - 1) * max(0.0, bound_ms - self.token_ms)
        self._step_ms = min(self._step_ms, spare_ms + BORROWED_SHARE * saved_ms)
        return True

    def _find_prompt_tokens(self, most: int) -> int:
        """The most prompt tokens with which the step stays in its time."""
        if self._step_ms == math.inf:
            return most
        low, high = 0, most + 1  # `low` fits, `high` does not
        while high - low > 1:
            middle = (low + high) // 2
            load = StepLoad(self._num_decoding, middle, self._ranks, self._kv_tokens)
            if self._model.step_ms(load) <= self._step_ms:
                low = middle
            else:
                high = middle
        return low

    def _batch_ms(self, num_requests: int, ranks: RankSums[int], kv_tokens: int) -> float:
        return self._model.decode_ms(BatchLoad(num_requests, ranks, kv_tokens))

    def _ranks_with(self, sequence: Sequence) -> RankSums[int]:
        """Of the batch's adapters and one more request's, each once: a kernel reads its weights once."""
        adapter = sequence.request.adapter
        if adapter is None or adapter in self._adapters:
            return self._ranks
        num_adapters, lora_rank_sum, lora_rank_max = self._ranks
        lora_rank = self._lora_ranks[adapter]
        return RankSums(num_adapters + 1, lora_rank_sum + lora_rank, max(lora_rank_max, lora_rank))
