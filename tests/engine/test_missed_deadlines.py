"""With `drop`, what is past its deadline gives back all it holds, wherever it is, and is a failure."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from caraserve_cli.coldstart.policy import OnDemand
from caraserve_cli.config import EngineConfig
from caraserve_cli.core import (
    AdapterInfo,
    Bounds,
    Completion,
    Failure,
    Request,
    SamplingParams,
    Sequence,
    Timings,
)
from caraserve_cli.engine.engine import Engine
from caraserve_cli.engine.missed_deadlines import MissedDeadlines
from caraserve_cli.errors import RowErrorCode
from caraserve_cli.fleet.local import NoEvents
from tests.engine.depots import HandDepot
from tests.engine.planning import UNIT, make_adapter
from tests.engine.test_pipelining import AheadRunner


class Clock:
    now_ms = 0.0

    def __call__(self) -> float:
        return self.now_ms


class Answering:
    """An engine whose steps take 10 ms each."""

    def __init__(self, max_in_flight: int, **changes: int | bool) -> None:
        self.clock = Clock()
        self.runner = AheadRunner(max_in_flight)
        settings = {
            "num_kv_blocks": 64,
            "adapter_memory_bytes": 100 * UNIT,
            "max_context_tokens": 256,
            "kv_block_tokens": 4,
            "max_running": 2,
            "max_batch_tokens": 32,
            "prefill_chunk_tokens": 8,
            "drop_missed": True,
            **changes,
        }
        config = EngineConfig(**settings)  # type: ignore[arg-type]
        self.engine = Engine(config, self.runner, frozenset(), lambda _: 0, None, self.clock, NoEvents())

    def add(
        self, name: str, num_tokens: int, deadline_ms: float | None, adapter: AdapterInfo | None = None
    ) -> None:
        request = Request(
            id=name,
            line=1,
            prompt_token_ids=(1, 2, 3),
            adapter=None if adapter is None else adapter.name,
            sampling=SamplingParams(max_tokens=num_tokens, ignore_eos=True),
            bounds=Bounds(deadline_ms=deadline_ms),
        )
        self.engine.add_request(request, adapter)

    def steps(self) -> Iterator[Completion | Failure]:
        """Until all is answered."""
        while self.engine.has_work:
            self.clock.now_ms += 10.0
            yield from self.engine.step()
            self.engine.scheduler.check_integrity()
            assert self.clock.now_ms < 5000

    def finish(self) -> dict[str, Completion | Failure]:
        outcomes = list(self.steps())
        by_id = {each.request.id: each for each in outcomes}
        assert len(by_id) == len(outcomes), "each leaves once"
        assert self.engine.scheduler.blocks.num_used == 0
        return by_id


def failure(outcome: Completion | Failure) -> Failure:
    assert isinstance(outcome, Failure)
    assert outcome.code == RowErrorCode.DEADLINE_EXCEEDED
    return outcome


@pytest.mark.parametrize("max_in_flight", [1, 2])
def test_dropped_while_it_runs_and_while_it_waits(max_in_flight: int) -> None:
    answering = Answering(max_in_flight)
    answering.add("runs", 100, 200)
    answering.add("in time", 40, 2000)
    answering.add("waits", 5, 100)
    answering.add("unbounded", 5, None)
    outcomes = answering.finish()
    assert isinstance(outcomes["in time"], Completion)
    assert len(outcomes["in time"].token_ids) == 40
    assert isinstance(outcomes["unbounded"], Completion)
    running, waiting = failure(outcomes["runs"]), failure(outcomes["waits"])
    assert "deadline_ms 200 was exceeded by " in running.message
    assert "running, after " in running.message
    assert "of up to 100 tokens" in running.message
    assert "deadline_ms 100 was exceeded by " in waiting.message
    assert "waiting, before its first token" in waiting.message


@pytest.mark.parametrize("max_in_flight", [1, 2])
@pytest.mark.parametrize("deadline_ms", range(5, 125, 10))
def test_no_answer_is_later_than_its_deadline(max_in_flight: int, deadline_ms: float) -> None:
    """Wherever the deadline falls, in the step of the last token too; the neighbour's answer is whole."""
    answering = Answering(max_in_flight)
    answering.add("a", 9, deadline_ms)
    answering.add("b", 9, None)
    outcomes = answering.finish()
    assert isinstance(outcomes["b"], Completion)
    assert len(outcomes["b"].token_ids) == 9
    ended = outcomes["a"]
    if isinstance(ended, Completion):
        assert (ended.timings.last_token_ms or 0.0) <= deadline_ms
        assert len(ended.token_ids) == 9
    else:
        failure(ended)


def test_by_default_late_answers_are_answers() -> None:
    answering = Answering(2, drop_missed=False)
    answering.add("a", 9, 1)
    assert isinstance(answering.finish()["a"], Completion)


def test_dropped_while_its_adapter_is_being_copied() -> None:
    """It holds its place in the pool from when the copying begins; another may have it then."""
    answering = Answering(2)
    depot = HandDepot()
    cold_starts = answering.engine.scheduler.cold_starts
    cold_starts.supply, cold_starts.policy = depot, OnDemand()
    answering.add("copied", 5, 50, make_adapter("a", 80))
    for _ in range(3):
        answering.clock.now_ms += 10.0
        assert answering.engine.step() == []
    (sequence,) = answering.engine.scheduler.waiting
    assert sequence.adapter_slot is not None
    (dropped,) = answering.steps()
    failure(dropped)
    assert sequence.adapter_slot is None
    depot.arrived.update(range(4))
    answering.add("other", 2, None, make_adapter("b", 80))
    assert isinstance(answering.finish()["other"], Completion)


def test_who_is_still_being_computed_beside_the_others_stays_until_that_is_checked() -> None:
    request = Request(id="late", line=1, prompt_token_ids=(1,), bounds=Bounds(deadline_ms=10.0))
    sequence = Sequence(
        request=request,
        timings=Timings(arrival_ms=0.0),
        token_ids=[1],
        num_prompt_tokens=1,
        max_output_tokens=4,
    )
    missed = MissedDeadlines()
    missed.add(sequence)
    sequence.is_unchecked = True
    assert missed.take(20.0) == []
    sequence.is_unchecked = False
    assert missed.take(20.0) == [sequence]
    assert missed.take(30.0) == []
