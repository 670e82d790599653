"""Prompts computed beside the steps of the others: nobody waits for them, and nothing is lost or doubled."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from typing import ClassVar

import pytest

from caraserve_cli.adapters.extents import ALIGNMENT_BYTES as UNIT
from caraserve_cli.coldstart.arrival import Arrival, Decision
from caraserve_cli.config import EngineConfig
from caraserve_cli.core import AdapterInfo, ColdStart, Completion, Request, SamplingParams, Sequence
from caraserve_cli.engine.engine import Engine
from caraserve_cli.errors import DeviceMemoryError
from caraserve_cli.model.sampler import Sampled
from caraserve_cli.step_plan import AdapterLoad, AssistOutcome, ScheduledChunk, StepPlan
from tests.engine.depots import HandDepot
from tests.engine.test_pipelining import Records, token_at

ChosenTokens = list[tuple[ScheduledChunk, Sampled]]

BESIDE = Decision(ColdStart.CPU_ASSIST, cpu_layers=2, beside_ms=30.0)


class Depot(HandDepot):
    """Adapters arrive when the step that computes with them is through."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[int] = []

    def load(self, load: AdapterLoad) -> None:
        self.arrived.discard(load.adapter_slot)
        self.loaded.append(load.adapter_slot)

    def wait(self) -> None:
        self.arrived |= set(self.loaded)


class Tokens:
    adapter_copy_ms = 0.0

    def __init__(self, tokens: ChosenTokens, outcome: AssistOutcome = AssistOutcome.NONE) -> None:
        self._tokens, self.assist_outcome = tokens, outcome

    def sampled(self) -> ChosenTokens:
        return self._tokens


class LongTokens(Tokens):
    """Of a step that ends when it was asked so many times, as `steps` say."""

    def __init__(
        self,
        steps: LongSteps,
        chunks: SequenceOf[ScheduledChunk],
        tokens: ChosenTokens,
    ) -> None:
        outcome = AssistOutcome.LATE if steps.num_late > 0 else AssistOutcome.IN_TIME
        steps.num_late -= 1
        super().__init__(tokens, outcome)
        self._steps, self.chunks, self._num_left = steps, chunks, steps.length

    @property
    def has_ended(self) -> bool:
        self._num_left -= 1
        return self._num_left < 0

    def sampled(self) -> ChosenTokens:
        self._steps.under_way = None
        self._steps.adapters.wait()
        return super().sampled()


class LongSteps:
    """Steps beside those of a runner: one at a time."""

    max_tokens = 16

    def __init__(self, length: int, num_late: int, adapters: Depot) -> None:
        self.length, self.num_late, self.adapters = length, num_late, adapters
        self.under_way: LongTokens | None = None
        self.most_tokens = 0
        self.num_refusals = 0

    def launch(self, chunks: SequenceOf[ScheduledChunk]) -> LongTokens:
        assert self.under_way is None, "one at a time"
        if self.num_refusals:
            self.num_refusals -= 1
            raise DeviceMemoryError("no room")
        num_tokens = sum(chunk.num_tokens for chunk in chunks)
        assert 0 < num_tokens <= self.max_tokens
        self.most_tokens = max(self.most_tokens, num_tokens)
        assert all(chunk.sequence.num_pending_tokens == 0 for chunk in chunks)
        self.under_way = LongTokens(self, chunks, make_up_tokens(chunks))
        return self.under_way


class TwoLaneRunner:
    """Sees to it that no sequence, and no block of one, is in two steps at a time."""

    max_in_flight = 2

    def __init__(self, length: int, num_late: int = 0) -> None:
        self.adapters = Depot()
        self.steps_beside = LongSteps(length, num_late, self.adapters)
        self.num_meanwhile = 0

    @property
    def beside(self) -> LongSteps | None:
        return self.steps_beside

    def launch(self, plan: StepPlan) -> Tokens:
        if (step := self.steps_beside.under_way) is not None:
            self.num_meanwhile += 1
            apart = {chunk.sequence.request.id for chunk in step.chunks}
            blocks = {block for chunk in step.chunks for block in chunk.sequence.block_table}
            for chunk in plan.chunks:
                assert chunk.sequence.request.id not in apart
                assert not blocks & set(chunk.sequence.block_table), "a block in two steps at a time"
        return Tokens(make_up_tokens(plan.chunks))


class OneLaneRunner(TwoLaneRunner):
    """Computes nothing beside its steps."""

    @property
    def beside(self) -> None:
        return None


def make_up_tokens(chunks: SequenceOf[ScheduledChunk]) -> ChosenTokens:
    def token_of(sequence: Sequence) -> Sampled:
        return Sampled(token_at(sequence, sequence.num_tokens), None)

    return [(chunk, token_of(chunk.sequence)) for chunk in chunks if chunk.yields_token]


class Always:
    """A policy of one decision."""

    name: ClassVar[str] = "always"

    def __init__(self, decision: Decision) -> None:
        self._decision, self.arrivals = decision, list[Arrival]()

    def decide(self, arrival: Arrival) -> Decision:
        self.arrivals.append(arrival)
        return self._decision


def answer(
    runner: TwoLaneRunner, num_kv_blocks: int = 200, decision: Decision = BESIDE, num_requests: int = 40
) -> tuple[dict[str, Completion], Records, Always]:
    config = EngineConfig(
        num_kv_blocks=num_kv_blocks,
        kv_block_tokens=4,
        adapter_memory_bytes=5 * UNIT,
        max_context_tokens=64,
        max_running=6,
        max_batch_tokens=24,
        prefill_chunk_tokens=8,
    )
    records, policy = Records(), Always(decision)
    engine = Engine(config, runner, frozenset({0}), lambda _: 0, None, lambda: 0.0, records)
    engine.scheduler.cold_starts.policy = policy
    for number in range(num_requests):
        request = Request(
            id=f"r{number}",
            line=number,
            prompt_token_ids=(*range(1, 3 + (5 * number) % 17), number % 7),
            adapter=None if number % 4 == 0 else f"a{number % 9}",
            sampling=SamplingParams(max_tokens=1 + (3 * number) % 20),
        )
        info = None
        if request.adapter is not None:
            name = request.adapter
            info = AdapterInfo(name=name, lora_rank=8, num_bytes=UNIT, identity=name.encode())
        engine.add_request(request, info)
    answers: dict[str, Completion] = {}
    while engine.has_work:
        for outcome in engine.step():
            assert isinstance(outcome, Completion)
            assert outcome.request.id not in answers
            answers[outcome.request.id] = outcome
        engine.scheduler.check_integrity()
    assert runner.steps_beside.under_way is None
    return answers, records, policy


def tokens_of(answers: dict[str, Completion]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(each.token_ids) for name, each in answers.items()}


@pytest.mark.parametrize("num_late", [0, 5], ids=["in time", "late"])
@pytest.mark.parametrize("length", [0, 1, 7])
@pytest.mark.parametrize("num_kv_blocks", [200, 14], ids=["roomy", "preempting"])
def test_no_answer_changes(num_kv_blocks: int, length: int, num_late: int) -> None:
    expected, _, _ = answer(TwoLaneRunner(0), decision=Decision(ColdStart.STREAM))
    runner = TwoLaneRunner(length, num_late)
    answers, records, _ = answer(runner, num_kv_blocks)
    assert tokens_of(answers) == tokens_of(expected)
    assert records.total("num_answer_tokens") == sum(map(len, tokens_of(answers).values()))
    beside = [step for step in records.steps if step.is_beside]
    assert beside
    assert all(step.num_prefill_tokens and not step.num_decode_tokens for step in beside)
    assert (runner.num_meanwhile > len(beside)) == (length > 1), "the others went on"
    assert records.total("num_failed_assists") == sum(each.num_failed_assists for each in answers.values())
    assert (records.total("num_failed_assists") > 0) == (num_late > 0)
    assert (records.total("num_preempted") > 0) == (num_kv_blocks < 200)


def test_steps_that_share_the_device_are_neither_predicted_nor_learned_from() -> None:
    """Of all that ran while something was beside it, at any time between launch and end."""
    _, records, _ = answer(TwoLaneRunner(7))
    of = {step.why_unpredicted for step in records.steps if step.is_beside}
    assert of == {"beside"}
    apart = [step for step in records.steps if not step.is_beside]
    assert {step.why_unpredicted for step in apart} <= {"sharing", "learning", ""}
    assert sum(step.why_unpredicted == "sharing" for step in apart) > len(records.steps) / 3
    assert all((step.predicted_ms is None) == bool(step.why_unpredicted) for step in records.steps)


@pytest.mark.parametrize("decision", [BESIDE, Decision(ColdStart.STREAM)])
def test_what_is_loaded_for_a_step_beside_is_told_to_be(
    decision: Decision, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the next step waits for is not to come behind it."""
    loads: list[AdapterLoad] = []
    load_as_before = Depot.load

    def load_and_note(depot: Depot, load: AdapterLoad) -> None:
        loads.append(load)
        load_as_before(depot, load)

    monkeypatch.setattr(Depot, "load", load_and_note)
    answer(TwoLaneRunner(3), decision=decision)
    assert {load.is_beside for load in loads} == {decision.beside_ms > 0}


def test_several_prompts_share_a_step_as_far_as_there_is_room() -> None:
    runner = TwoLaneRunner(3)
    answer(runner)
    assert 8 < runner.steps_beside.most_tokens <= LongSteps.max_tokens


def test_where_nothing_is_computed_beside_nobody_is_told_that_it_could_be() -> None:
    _, records, policy = answer(OneLaneRunner(0), decision=Decision(ColdStart.STREAM))
    assert {arrival.beside_wait_ms for arrival in policy.arrivals} == {None}
    assert not any(step.is_beside for step in records.steps)


def test_who_decides_knows_how_long_the_lane_is_taken() -> None:
    _, _, policy = answer(TwoLaneRunner(5))
    assert {arrival.beside_wait_ms for arrival in policy.arrivals} == {0.0, BESIDE.beside_ms}


def test_what_does_not_fit_the_device_is_planned_again() -> None:
    expected, _, _ = answer(TwoLaneRunner(1))
    runner = TwoLaneRunner(1)
    runner.steps_beside.num_refusals = 2
    answers, _, _ = answer(runner)
    assert tokens_of(answers) == tokens_of(expected)
