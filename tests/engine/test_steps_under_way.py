"""What steps tell of cold adapters: to their sequences and in their records. Times are made up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from caraserve_cli.adapters.extents import ALIGNMENT_BYTES as UNIT
from caraserve_cli.adapters.transfer import Stall
from caraserve_cli.coldstart.arrival import Arrival, Decision
from caraserve_cli.config import EngineConfig
from caraserve_cli.core import AdapterInfo, ColdStart, Completion, Request, SamplingParams
from caraserve_cli.engine.engine import Engine
from caraserve_cli.engine.model_runner import KnownTokens
from caraserve_cli.model.sampler import Sampled
from caraserve_cli.perf.step_predictor import STEPS_TO_LEARN
from caraserve_cli.step_plan import AdapterLoad, AssistOutcome, StepPlan
from tests.engine.depots import HandDepot
from tests.engine.test_pipelining import Records

STEP_MS = 10.0


@dataclass
class MadeUpArrival:
    """The end of copies that are there."""

    stalled_ms: float
    has_come = True
    took_ms = 0.0

    def wait(self) -> None: ...

    def ms_since(self, first: MadeUpArrival) -> float:
        return first.took_ms


class StallingDepot(HandDepot):
    """Steps stand still for what the test says, once."""

    def __init__(self) -> None:
        super().__init__()
        self.copied_bytes = 0
        self.num_lost_workers = 0
        self.stalls_ms: list[float] = []
        self.took_ms = 6.0

    def load(self, load: AdapterLoad) -> None:
        self.copied_bytes += 1000

    def take_stall(self) -> Stall:
        stall = Stall(tuple(map(MadeUpArrival, self.stalls_ms)))
        self.stalls_ms = []
        return stall


class SlowRunner:
    """Makes up tokens; a step takes STEP_MS. `is_late`: CPU workers are too late in the first step
    that asks for them. Without `has_workers` there are none any more when a step asks for them."""

    max_in_flight = 1
    beside = None

    def __init__(self, *, is_late: bool = False, has_workers: bool = True) -> None:
        self.adapters = StallingDepot()
        self.is_late, self.has_workers = is_late, has_workers
        self.now_ms = 0.0

    def launch(self, plan: StepPlan) -> KnownTokens:
        self.now_ms += STEP_MS
        is_assisted = self.has_workers and any(chunk.cpu_layers for chunk in plan.chunks)
        in_time = not (is_assisted and self.is_late)
        self.is_late &= in_time
        self.adapters.arrived |= {op.adapter_slot for op in plan.pool_ops if isinstance(op, AdapterLoad)}
        tokens = [(chunk, Sampled(7, None)) for chunk in plan.chunks if chunk.yields_token]
        outcome = AssistOutcome.IN_TIME if in_time else AssistOutcome.LATE
        return KnownTokens(tokens, outcome=outcome if is_assisted else AssistOutcome.NONE)


class Always:
    """A policy of one decision."""

    name: ClassVar[str] = "always"

    def __init__(self, decision: Decision) -> None:
        self._decision = decision

    def decide(self, arrival: Arrival) -> Decision:
        return self._decision


def start(runner: SlowRunner, decision: Decision) -> tuple[Engine, Records]:
    records = Records()
    config = EngineConfig(num_kv_blocks=64, adapter_memory_bytes=10 * UNIT, max_context_tokens=64)
    engine = Engine(config, runner, frozenset(), lambda _: 0, None, lambda: runner.now_ms, records)
    engine.scheduler.cold_starts.policy = Always(decision)
    return engine, records


def add(engine: Engine, name: str, adapter: str | None, max_tokens: int) -> None:
    request = Request(
        id=name,
        line=1,
        prompt_token_ids=(3, 4),
        adapter=adapter,
        sampling=SamplingParams(max_tokens=max_tokens),
        arrival_ms=engine._clock_ms(),
    )
    info = None
    if adapter is not None:
        info = AdapterInfo(name=adapter, lora_rank=8, num_bytes=UNIT, identity=adapter.encode())
    engine.add_request(request, info)


def finish(engine: Engine) -> dict[str, Completion]:
    done: dict[str, Completion] = {}
    while engine.has_work:
        for outcome in engine.step():
            assert isinstance(outcome, Completion)
            done[outcome.request.id] = outcome
    return done


def test_steps_are_predicted_without_what_they_stand_still() -> None:
    """Each step of this runner computes for STEP_MS, on virtual time."""
    runner = SlowRunner()
    engine, records = start(runner, Decision(ColdStart.STREAM))
    for number in range(4):
        add(engine, str(number), None, max_tokens=20)
        finish(engine)
    decoding = [step for step in records.steps if step.kind == "decode"]
    told = [step.predicted_ms for step in decoding]
    assert told[:STEPS_TO_LEARN] == [None] * STEPS_TO_LEARN
    assert {step.why_unpredicted for step in decoding[:STEPS_TO_LEARN]} == {"learning"}
    assert told[STEPS_TO_LEARN:] == pytest.approx([STEP_MS] * (len(told) - STEPS_TO_LEARN))
    assert {step.prediction_source for step in records.steps} == {"learned on line"}


def test_what_cpu_workers_have_a_part_in_is_not_predicted() -> None:
    runner = SlowRunner()
    engine, records = start(runner, Decision(ColdStart.CPU_ASSIST, cpu_layers=1))
    runner.adapters.most_assisted_tokens = 16
    add(engine, "cold", "a", max_tokens=3)
    finish(engine)
    assert [step.why_unpredicted for step in records.steps if step.num_assists] == ["assisted"]


@pytest.mark.parametrize("how", [ColdStart.STREAM, ColdStart.ON_DEMAND_BLOCKING])
def test_a_step_that_stands_still_delays_its_own_request_and_the_others(how: ColdStart) -> None:
    runner = SlowRunner()
    engine, records = start(runner, Decision(how))
    add(engine, "base", None, max_tokens=3)
    add(engine, "base too", None, max_tokens=1)
    add(engine, "cold", "a", max_tokens=1)
    runner.adapters.stalls_ms = [1.5, 2.5]
    done = finish(engine)
    cold, base = done["cold"], done["base"]
    assert (cold.timings.load_wait_ms, cold.timings.stalled_ms) == (4.0, 0.0)
    assert (base.timings.load_wait_ms, base.timings.stalled_ms) == (0.0, 4.0)
    assert cold.timings.load is not None
    assert cold.timings.load.ms == 6.0, "told, though it ended with the step that loaded its adapter"
    first, *rest = records.steps
    assert (first.stall_ms, first.others_stalled_ms) == (4.0, 8.0)
    assert (first.loads_by_strategy, first.adapter_bytes) == ({how.value: 1}, 1000)
    assert not any(step.stall_ms or step.adapter_bytes or step.loads_by_strategy for step in rest)


def test_who_decodes_waits_for_the_adapters_of_others() -> None:
    """Its own was complete before, whether that has been noted or not."""
    runner = SlowRunner()
    engine, _ = start(runner, Decision(ColdStart.STREAM))
    runner.adapters.has_arrived = lambda adapter_slot: False  # type: ignore[method-assign]
    add(engine, "cold", "a", max_tokens=2)
    engine.step()
    runner.adapters.stalls_ms = [5.0]
    (done,) = finish(engine).values()
    assert (done.timings.load_wait_ms, done.timings.stalled_ms) == (0.0, 5.0)
    assert done.timings.load is not None
    assert done.timings.load.ms is None, "it ended before its adapter had arrived"


@pytest.mark.parametrize("is_late", [False, True])
def test_assists_and_their_failures_are_counted(is_late: bool) -> None:
    runner = SlowRunner(is_late=is_late)
    engine, records = start(runner, Decision(ColdStart.CPU_ASSIST, cpu_layers=2))
    add(engine, "cold", "a", max_tokens=2)
    add(engine, "base", None, max_tokens=2)
    runner.adapters.num_lost_workers = 3
    done = finish(engine)
    assert done["cold"].num_failed_assists == int(is_late)
    assert done["cold"].cold_start is (ColdStart.ON_DEMAND if is_late else ColdStart.CPU_ASSIST)
    assert (done["cold"].timings.assisted_ms, done["base"].timings.assisted_ms) == (STEP_MS, 0.0)
    assert len(done["cold"].token_ids) == 2
    assert (records.total("num_assists"), records.total("num_failed_assists")) == (1, int(is_late))
    assert [step.num_lost_workers for step in records.steps][:2] == [3, 0], "each is told once"


def test_a_step_that_found_no_workers_was_not_assisted() -> None:
    runner = SlowRunner(has_workers=False)
    engine, records = start(runner, Decision(ColdStart.CPU_ASSIST, cpu_layers=2))
    add(engine, "cold", "a", max_tokens=2)
    (done,) = finish(engine).values()
    assert (done.timings.assisted_ms, done.num_failed_assists, len(done.token_ids)) == (0.0, 0, 2)
    assert records.total("num_assists") == 0


class LaterLate(KnownTokens):
    """In time, and from the second look on late: the step behind has failed meanwhile."""

    num_looks = 0

    @property
    def assist_outcome(self) -> AssistOutcome:  # type: ignore[override]
        self.num_looks += 1
        return AssistOutcome.IN_TIME if self.num_looks == 1 else AssistOutcome.LATE

    @assist_outcome.setter
    def assist_outcome(self, outcome: AssistOutcome) -> None: ...


def test_what_fails_behind_a_step_takes_no_token_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = SlowRunner()
    engine, records = start(runner, Decision(ColdStart.CPU_ASSIST, cpu_layers=2))
    launch = runner.launch

    def launch_looked_at(plan: StepPlan) -> KnownTokens:
        known = launch(plan)
        return LaterLate(known.sampled()) if any(chunk.cpu_layers for chunk in plan.chunks) else known

    monkeypatch.setattr(runner, "launch", launch_looked_at)
    add(engine, "cold", "a", max_tokens=3)
    (done,) = finish(engine).values()
    assert (len(done.token_ids), done.num_failed_assists) == (3, 0)
    assert (records.total("num_assists"), records.total("num_failed_assists")) == (1, 0)
