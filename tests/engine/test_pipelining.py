"""A runner that is one step ahead of its tokens gives the answers of one that is not."""

from __future__ import annotations

import dataclasses

import pytest

from caraserve_cli.config import EngineConfig
from caraserve_cli.core import Completion, FinishReason, Request, SamplingParams, Sequence, SequenceStatus
from caraserve_cli.engine.engine import Engine
from caraserve_cli.engine.scheduler import Scheduler
from caraserve_cli.errors import DeviceMemoryError
from caraserve_cli.events import EventSink, StepRecord
from caraserve_cli.fleet.local import NoEvents
from caraserve_cli.model.sampler import Sampled
from caraserve_cli.step_plan import AssistOutcome, ScheduledChunk, StepPlan
from tests.engine.depots import StillDepot

EOS = 0


def token_at(sequence: Sequence, position: int) -> int:
    """A made-up model: the token at a position depends on the prompt and the position alone. Whether a runner
    feeds the right token to its next step is seen by `tests/fleet/test_parity.py`."""
    return (hash((sequence.request.prompt_token_ids, position)) % 23) + (position % 11 > 0)


class DelayedTokens:
    """Knows its tokens from the start, and says so only when asked."""

    adapter_copy_ms = 0.0

    assist_outcome = AssistOutcome.NONE

    def __init__(self, tokens: list[tuple[ScheduledChunk, Sampled]], runner: AheadRunner) -> None:
        self._tokens = tokens
        self._runner = runner

    def sampled(self) -> list[tuple[ScheduledChunk, Sampled]]:
        self._runner.num_under_way -= 1
        return self._tokens


class AheadRunner:
    """Keeps what a GPU would keep: how many tokens of each sequence are cached, pending ones included.

    Its memory holds steps of `most_tokens`, and any from the launch numbered `roomy_from` on.
    """

    beside = None

    def __init__(self, max_in_flight: int, most_tokens: int = 1000, roomy_from: int = 100_000) -> None:
        self.max_in_flight = max_in_flight
        self.adapters = StillDepot()
        self.most_tokens = most_tokens
        self.roomy_from = roomy_from
        self.num_under_way = self.most_under_way = 0
        self.launched_tokens: list[int] = []
        self.num_refused = 0

    def launch(self, plan: StepPlan) -> DelayedTokens:
        if plan.num_tokens > self.most_tokens and len(self.launched_tokens) < self.roomy_from:
            self.num_refused += 1
            raise DeviceMemoryError(f"{plan.num_tokens} tokens")
        self.launched_tokens.append(plan.num_tokens)
        self.num_under_way += 1
        self.most_under_way = max(self.most_under_way, self.num_under_way)
        tokens = []
        for chunk in plan.chunks:
            sequence = chunk.sequence
            assert sequence.status is SequenceStatus.RUNNING
            assert sequence.num_pending_tokens <= self.max_in_flight - 1
            assert chunk.start + chunk.num_tokens <= sequence.num_tokens
            if chunk.yields_token:
                tokens.append((chunk, Sampled(token_at(sequence, sequence.num_tokens), None)))
        return DelayedTokens(tokens, self)


class Records:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.steps: list[StepRecord] = []

    def on_step(self, record: StepRecord) -> None:
        self.steps.append(record)

    def total(self, count: str) -> int:
        return sum(getattr(step, count) for step in self.steps)


def answer(
    requests: list[Request], runner: AheadRunner, num_kv_blocks: int, events: EventSink | None = None
) -> tuple[dict[str, tuple[tuple[int, ...], FinishReason]], int]:
    """Each answer, and how often a sequence was preempted."""
    config = EngineConfig(
        num_kv_blocks=num_kv_blocks,
        kv_block_tokens=4,
        adapter_memory_bytes=1,
        max_context_tokens=64,
        max_running=6,
        max_batch_tokens=24,
        prefill_chunk_tokens=8,
    )
    engine = Engine(config, runner, frozenset({EOS}), lambda _: 0, None, lambda: 0.0, events or NoEvents())
    for request in requests:
        engine.add_request(request, None)
    answers: dict[str, tuple[tuple[int, ...], FinishReason]] = {}
    num_preemptions = 0
    while engine.has_work:
        for outcome in engine.step():
            assert isinstance(outcome, Completion)
            assert outcome.request.id not in answers
            answers[outcome.request.id] = (tuple(outcome.token_ids), outcome.finish_reason)
            num_preemptions += outcome.num_preemptions
        engine.scheduler.check_integrity()
    return answers, num_preemptions


def make_requests(**sampling: float) -> list[Request]:
    return [
        Request(
            id=f"r{i}",
            line=i,
            prompt_token_ids=(*range(1, 3 + (5 * i) % 17), i % 7),
            sampling=SamplingParams(max_tokens=1 + (3 * i) % 20, **sampling),  # type: ignore[arg-type]
        )
        for i in range(30)
    ]


@pytest.mark.parametrize("num_kv_blocks", [200, 14], ids=["roomy", "preempting"])
def test_being_ahead_changes_no_answer(num_kv_blocks: int) -> None:
    requests = make_requests()
    expected, _ = answer(requests, AheadRunner(1), num_kv_blocks)
    runner = AheadRunner(2)
    ahead, num_preemptions = answer(requests, runner, num_kv_blocks)
    assert ahead == expected
    assert runner.most_under_way == 2
    assert len(ahead) == len(requests)
    assert {reason for _, reason in ahead.values()} == {FinishReason.STOP, FinishReason.LENGTH}
    assert (num_preemptions > 0) == (num_kv_blocks < 200)


def test_an_answer_is_never_longer_than_asked() -> None:
    answers, _ = answer(make_requests(), AheadRunner(2), 200)
    for number, (tokens, _) in enumerate(answers[f"r{i}"] for i in range(30)):
        assert len(tokens) <= 1 + (3 * number) % 20


def test_who_must_know_the_last_token_is_never_ahead() -> None:
    runner = AheadRunner(2)
    answers, _ = answer(make_requests(repetition_penalty=1.3), runner, 200)
    assert len(answers) == 30
    assert runner.most_under_way == 1


@pytest.mark.parametrize(
    ("max_in_flight", "repetition_penalty", "looks"), [(2, 1.0, True), (1, 1.0, False), (2, 1.3, False)]
)
def test_nothing_is_looked_up_for_later_before_tokens_that_are_there_are_taken(
    max_in_flight: int, repetition_penalty: float, looks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would be stamped later than they came, and may be late then."""
    under_way: list[int] = []
    runner = AheadRunner(max_in_flight)
    monkeypatch.setattr(Scheduler, "look_ahead", lambda _: under_way.append(runner.num_under_way))
    answer(make_requests(repetition_penalty=repetition_penalty), runner, 200)
    assert bool(under_way) == looks
    assert all(under_way)


def test_who_waits_holds_nobody_back() -> None:
    """Steps are ahead until the one request that must know its tokens runs, and again after it."""
    last = dataclasses.replace(make_requests(logprobs=1)[0], id="last", line=99)
    runner = AheadRunner(2)
    answers, _ = answer([*make_requests(), last], runner, 200)
    assert len(answers) == 31
    assert runner.most_under_way == 2


def test_nothing_is_under_way_when_all_is_answered() -> None:
    runner = AheadRunner(2)
    answer(make_requests(), runner, 200)
    assert runner.num_under_way == 0


@pytest.mark.parametrize("most_tokens", [13, 5, 1])
def test_what_does_not_fit_the_device_is_computed_in_smaller_steps(most_tokens: int) -> None:
    requests = make_requests()
    expected, _ = answer(requests, AheadRunner(1), 200)
    assert answer(requests, AheadRunner(2, most_tokens), 200)[0] == expected


def test_a_device_that_holds_no_token_ends_the_run() -> None:
    with pytest.raises(DeviceMemoryError, match="1 tokens"):
        answer(make_requests(), AheadRunner(2, most_tokens=0), 200)


@pytest.mark.parametrize("most_tokens", [1000, 13])
@pytest.mark.parametrize("max_in_flight", [1, 2])
def test_every_computed_token_is_counted_once(max_in_flight: int, most_tokens: int) -> None:
    """The first token of an answer comes with its prompt; what was computed for nothing is told apart."""
    requests, runner, records = make_requests(), AheadRunner(max_in_flight, most_tokens), Records()
    answers, _ = answer(requests, runner, 200, records)
    num_prompt = sum(len(request.prompt_token_ids) for request in requests)
    assert records.total("num_prefill_tokens") + records.total("num_cached_tokens") == num_prompt
    assert records.total("num_decode_tokens") == sum(len(tokens) - 1 for tokens, _ in answers.values())
    assert records.total("num_answer_tokens") == sum(len(tokens) for tokens, _ in answers.values())
    computed = [f"num_{kind}_tokens" for kind in ("prefill", "decode", "dropped")]
    assert sum(map(records.total, computed)) == sum(runner.launched_tokens)
    assert (records.total("num_dropped_tokens") > 0) == (max_in_flight > 1)


def test_what_was_tried_in_vain_is_told() -> None:
    runner, records = AheadRunner(2, most_tokens=5), Records()
    answer(make_requests(), runner, 200, records)
    assert records.total("num_memory_retries") == runner.num_refused > 0
    roomy = Records()
    answer(make_requests(), AheadRunner(2), 200, roomy)
    assert roomy.total("num_memory_retries") == 0


def test_steps_grow_again_once_there_is_room() -> None:
    runner = AheadRunner(2, most_tokens=5, roomy_from=20)
    requests = [
        dataclasses.replace(
            request, id=f"{copy} {request.id}", prompt_token_ids=(copy, *request.prompt_token_ids)
        )
        for copy in range(9)
        for request in make_requests()
    ]
    answer(requests, runner, 200)
    assert max(runner.launched_tokens[:20]) <= 5
    assert max(runner.launched_tokens[20:]) > 12, "of 24 that are allowed, after 3 tokens a step"
    assert runner.num_refused == 3
