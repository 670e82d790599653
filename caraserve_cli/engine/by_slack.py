"""By slack: those that wait are taken in the order of their latest start that still meets their bounds, and
steps stay within what the TPOT bounds of those that run allow.

The order. Whoever was preempted comes first, in the order of arrival: its clock is running. Then come those
whose TTFT bound and deadline can still be met, by their latest start (`due_times`). Then, in the order of
arrival, the *patient*: those that no such bound drives, and those whose bounds cannot be met any more, so
that one that is lost loses no others. If nobody is driven by a bound, all of it is the order of arrival, and
plans are those of first come, first served.

Why nobody starves: who is driven by a bound is admitted, or lost in finite time and then patient. The oldest
of the patient has its *turn* when it has waited for `PATIENCE_MS` and `OTHERS_PER_TURN` others were admitted
since a patient one had its own: it is then before all that were not preempted, no neighbour's bound keeps it
out, and it stays there until it is admitted. Patient ones that were queued before it are finitely many, as
are those that ever were preempted before it is admitted: nobody is admitted past it but whom the scheduler
lets pass the head of any queue. If fewer others than that arrive, those that run end, and there is nobody
whose bound could keep it out. Admitted, it is served like all that run (`scheduler`); every step that has a
prompt to compute has at least `step_room.MIN_CHUNK_TOKENS` of the first of them.

Predictions need a model of the replica's steps. Without one requests are ordered by when their bounds are
due, first tokens are expected to take as long as those lately seen, and no step is bounded.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from typing import ClassVar

from caraserve_cli.config import EngineConfig
from caraserve_cli.core import AdapterInfo, Sequence, SequenceStatus
from caraserve_cli.engine.due_times import StartTimes, start_times
from caraserve_cli.engine.first_token_lag import FirstTokenLag
from caraserve_cli.engine.plan_draft import PlanDraft
from caraserve_cli.engine.scheduling import FirstComeFirstServed, SchedulingPolicy
from caraserve_cli.engine.step_room import MIN_CHUNK_TOKENS, StepRoom
from caraserve_cli.errors import OptionError
from caraserve_cli.perf.batch_load import NO_RANKS, BatchLoad, RankSums
from caraserve_cli.perf.step_model import StepModel
from caraserve_cli.perf.step_predictor import StepPredictor

# How long a patient request may be passed by all whose bounds can be met. Chosen, not measured.
PATIENCE_MS = 10_000.0

# After that, of so many others that are admitted it is the next. In a queue that never ends an eighth of the
# places is what the patient cost those whose bounds can be met. Chosen, not measured.
OTHERS_PER_TURN = 7

SCHEDULING_NAMES = ("slack", FirstComeFirstServed.name)


class BySlack:
    """The order, and the bounds of steps.

    Args:
        config: sizes of the replica.
        predictor: of its steps: their corrected model is what is planned by, if there is one.
    """

    name: ClassVar[str] = "slack"

    def __init__(self, config: EngineConfig, predictor: StepPredictor) -> None:
        self._config, self._predictor = config, predictor
        self._lag = FirstTokenLag()
        self._lora_ranks: dict[str, int] = {}
        self._num_added = 0
        self._added: dict[Sequence, tuple[int, float]] = {}  # its place in the order of arrival, and when
        self._starts: dict[Sequence, StartTimes] = {}  # of those that have to start by some time
        self._num_tpot_bounds = 0
        # Admitted, and without a first token: since when, and the prediction.
        self._expected: dict[Sequence, tuple[float, float]] = {}
        self._patient: list[Sequence] = []  # at the last plan, the oldest last; some are admitted since
        self._num_others = 0  # admitted past the oldest patient one since one was admitted
        self._has_turn = False
        self._now_ms = 0.0
        self._running: SequenceOf[Sequence] = ()
        self._step_room: StepRoom | None = None

    def add(self, sequence: Sequence, adapter: AdapterInfo | None, now_ms: float) -> None:
        """See `SchedulingPolicy`."""
        if adapter is not None:
            self._lora_ranks[adapter.name] = adapter.lora_rank
        self._added[sequence] = self._num_added, now_ms
        self._num_added += 1
        self._num_tpot_bounds += sequence.request.bounds.tpot_slo_ms is not None
        starts = start_times(
            sequence,
            prefill_ms=self._prefill_ms(sequence),
            token_ms=self._token_ms(sequence),
            num_chunks=self._num_chunks(sequence),
        )
        if starts is not None:
            self._starts[sequence] = starts

    def remove(self, sequence: Sequence) -> None:
        """See `SchedulingPolicy`."""
        del self._added[sequence]
        self._num_tpot_bounds -= sequence.request.bounds.tpot_slo_ms is not None
        self._starts.pop(sequence, None)

    def begin_plan(self, running: SequenceOf[Sequence], now_ms: float) -> None:
        """See `SchedulingPolicy`."""
        self._running, self._now_ms, self._step_room = running, now_ms, None
        for sequence, (since_ms, predicted_ms) in tuple(self._expected.items()):
            first_ms = sequence.timings.first_token_ms
            if first_ms is not None:
                self._lag.note(first_ms - since_ms, predicted_ms, self._num_chunks(sequence))
            if first_ms is not None or sequence.num_preemptions or sequence.status is SequenceStatus.FINISHED:
                del self._expected[sequence]

    def order(self, waiting: SequenceOf[Sequence]) -> list[Sequence]:
        """See `SchedulingPolicy`."""
        if not self._starts and not self._num_tpot_bounds:
            return list(waiting)
        preempted: list[Sequence] = []
        driven: list[tuple[float, int, Sequence]] = []
        patient: list[Sequence] = []
        for place, sequence in enumerate(waiting):
            if sequence.num_preemptions:
                preempted.append(sequence)
            elif self._is_driven(sequence):
                driven.append((self._starts[sequence].latest_ms, place, sequence))
            else:
                patient.append(sequence)
        self._patient = patient[::-1]
        self._has_turn = (
            bool(patient)
            and self._num_others >= OTHERS_PER_TURN
            and self._now_ms - self._added[patient[0]][1] >= PATIENCE_MS
        )
        if not driven:
            return list(waiting)
        driven.sort()
        by_slack = [sequence for _, _, sequence in driven]
        num_first = int(self._has_turn)
        return [*preempted, *patient[:num_first], *by_slack, *patient[num_first:]]

    def most_prompt_tokens(self, sequence: Sequence, draft: PlanDraft) -> int:
        """See `SchedulingPolicy`."""
        room = self._room()
        if room is None:
            return draft.budget_tokens
        return room.prompt_tokens(sequence, draft) or (0 if draft.prompt_tokens else MIN_CHUNK_TOKENS)

    def most_first_tokens(self, sequence: Sequence, draft: PlanDraft) -> int:
        """See `SchedulingPolicy`. A neighbour's bound keeps it out while its adapter or its mere presence
        would break that for the rest of the answer. A step that is too long by its prompt alone is bearable
        once: so a prompt waits for room only as long as it has slack itself."""
        room = self._room()
        if room is None:
            return draft.budget_tokens
        if self._has_turn and sequence is self._find_oldest_patient():
            return room.prompt_tokens(sequence, draft) or MIN_CHUNK_TOKENS
        if not sequence.num_preemptions and not room.bears(sequence):
            return 0
        num_tokens = room.prompt_tokens(sequence, draft)
        if num_tokens or self._can_wait(sequence, room.token_ms):
            return num_tokens
        return MIN_CHUNK_TOKENS

    def note_admitted(self, sequence: Sequence, now_ms: float) -> None:
        """See `SchedulingPolicy`."""
        if not self._starts and not self._num_tpot_bounds:
            return
        if self._step_room is not None:
            self._step_room.note_admitted(sequence)
        if not sequence.num_preemptions:
            self._expected[sequence] = now_ms, self._prefill_ms(sequence)
        oldest = self._find_oldest_patient()
        if oldest is None or sequence is oldest:
            self._num_others, self._has_turn = 0, False
            self._patient[-1:] = []
        elif self._added[oldest][0] < self._added[sequence][0]:
            self._num_others += 1

    def _find_oldest_patient(self) -> Sequence | None:
        """Of the last plan, the oldest that still waits."""
        while self._patient and self._patient[-1].status is not SequenceStatus.WAITING:
            self._patient.pop()
        return self._patient[-1] if self._patient else None

    def _is_driven(self, sequence: Sequence) -> bool:
        starts = self._starts.get(sequence)
        if starts is None:
            return False
        return self._now_ms + starts.num_chunks * self._lag.chunk_ms <= starts.last_chance_ms

    def _can_wait(self, sequence: Sequence, token_ms: float) -> bool:
        """Whether a sequence may as well start one step later; the preempted have waited enough."""
        if sequence.num_preemptions:
            return False
        starts = self._starts.get(sequence)
        if starts is None or not self._is_driven(sequence):
            return True
        later_ms = self._now_ms + token_ms + starts.num_chunks * self._lag.chunk_ms
        return later_ms <= starts.last_chance_ms

    @property
    def _model(self) -> StepModel | None:
        return self._predictor.model

    def _room(self) -> StepRoom | None:
        """Of this plan; None where nothing bounds its steps."""
        if not self._num_tpot_bounds or (model := self._model) is None:
            return None
        if self._step_room is None:
            self._step_room = StepRoom(
                model, self._running, self._lora_ranks, self._now_ms, self._config.max_batch_tokens
            )
        return self._step_room

    def _num_chunks(self, sequence: Sequence) -> int:
        return -(-sequence.num_prompt_tokens // self._config.prefill_chunk_tokens)

    def _prefill_ms(self, sequence: Sequence) -> float:
        if (model := self._model) is None:
            return 0.0
        return model.prompts_ms(sequence.num_prompt_tokens, self._ranks_of(sequence), len(self._running))

    def _token_ms(self, sequence: Sequence) -> float:
        """Of a decoding step of the batch as it is, and this one; the adapters of the others are left out,
        for they come and go before it ends."""
        if (model := self._model) is None:
            return 0.0
        return model.decode_ms(BatchLoad(len(self._running) + 1, self._ranks_of(sequence)))

    def _ranks_of(self, sequence: Sequence) -> RankSums[int]:
        adapter = sequence.request.adapter
        if adapter is None:
            return NO_RANKS
        lora_rank = self._lora_ranks[adapter]
        return RankSums(1, lora_rank, lora_rank)


def make_scheduling_policy(name: str, config: EngineConfig, predictor: StepPredictor) -> SchedulingPolicy:
    """What `--scheduling` names.

    Args:
        name: one of SCHEDULING_NAMES.
        config: sizes of the replica.
        predictor: as in `BySlack`.

    Raises:
        OptionError: there is no such policy.
    """
    if name == BySlack.name:
        return BySlack(config, predictor)
    if name == FirstComeFirstServed.name:
        return FirstComeFirstServed()
    raise OptionError(f"--scheduling: no policy '{name}'; choose from {', '.join(SCHEDULING_NAMES)}")
