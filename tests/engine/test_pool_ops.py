"""How the engine carries out a plan's changes to the adapter pool, the failed ones too."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

from caraserve_cli.adapters.extents import ALIGNMENT_BYTES as UNIT
from caraserve_cli.config import EngineConfig
from caraserve_cli.core import AdapterInfo, Completion, Failure, Request, SamplingParams
from caraserve_cli.engine.engine import Engine
from caraserve_cli.engine.model_runner import KnownTokens
from caraserve_cli.errors import AdapterError
from caraserve_cli.events import EventSink
from caraserve_cli.fleet.local import NoEvents
from caraserve_cli.model.sampler import Sampled
from caraserve_cli.step_plan import AdapterLoad, AdapterMove, StepPlan
from tests.engine.depots import StillDepot
from tests.engine.test_pipelining import Records

PREFETCH_MS, LOAD_MS = 50.0, 3.0


class NotingDepot(StillDepot):
    """Notes what it is told to do, and refuses to load one adapter."""

    def __init__(self, broken_adapter: str) -> None:
        self.told: list[str] = []
        self._broken_adapter = broken_adapter
        self._loaded: dict[int, str] = {}
        self.now_ms = 0.0

    def prefetch(self, adapters: SequenceOf[str]) -> None:
        self.now_ms += PREFETCH_MS

    def evict(self, adapter_slot: int) -> None:
        self.told.append(f"evict {self._loaded.pop(adapter_slot)}")

    def move(self, move: AdapterMove) -> None:
        assert move.num_bytes % UNIT == 0
        units = move.from_offset_bytes // UNIT, move.to_offset_bytes // UNIT
        self.told.append(f"move {self._loaded[move.adapter_slot]} {units[0]} to {units[1]}")

    def load(self, load: AdapterLoad) -> None:
        self.told.append(f"load {load.adapter} at {load.offset_bytes // UNIT}")
        self.now_ms += LOAD_MS
        if load.adapter == self._broken_adapter:
            raise AdapterError(load.adapter, "its files are gone")
        assert load.adapter_slot not in self._loaded
        self._loaded[load.adapter_slot] = load.adapter


class FakeRunner:
    """Makes up tokens."""

    max_in_flight = 1
    beside = None

    def __init__(self, broken_adapter: str) -> None:
        self.adapters = NotingDepot(broken_adapter)

    def launch(self, plan: StepPlan) -> KnownTokens:
        return KnownTokens([(chunk, Sampled(7, None)) for chunk in plan.chunks if chunk.yields_token])


def start(runner: FakeRunner, events: EventSink | None = None) -> Engine:
    config = EngineConfig(num_kv_blocks=64, adapter_memory_bytes=10 * UNIT, max_context_tokens=64)
    return Engine(
        config, runner, frozenset(), lambda _: 0, None, lambda: runner.adapters.now_ms, events or NoEvents()
    )


def add(engine: Engine, adapter: str, num_units: int, max_tokens: int) -> None:
    info = AdapterInfo(name=adapter, lora_rank=8, num_bytes=num_units * UNIT, identity=adapter.encode())
    sampling = SamplingParams(max_tokens=max_tokens)
    engine.add_request(
        Request(id=adapter, line=1, prompt_token_ids=(3, 4), adapter=adapter, sampling=sampling), info
    )


def run_plan_that_moves(broken_adapter: str) -> tuple[list[str], dict[str, Completion | Failure]]:
    """A second step that loads `new` and then slides it down again to make room for `newer`."""
    runner = FakeRunner(broken_adapter)
    engine = start(runner)
    add(engine, "left", 3, max_tokens=1)
    add(engine, "stays", 4, max_tokens=3)
    outcomes = engine.step()
    runner.adapters.told.clear()
    add(engine, "new", 2, max_tokens=2)
    add(engine, "newer", 4, max_tokens=2)
    outcomes += engine.step()
    engine.scheduler.check_integrity()
    told = list(runner.adapters.told)
    while engine.has_work:
        outcomes += engine.step()
    engine.scheduler.check_integrity()
    assert runner.adapters.told == told, "later steps find everything in place"
    return told, {outcome.request.id: outcome for outcome in outcomes}


def test_the_pool_changes_in_the_order_of_the_plan() -> None:
    told, outcomes = run_plan_that_moves(broken_adapter="")
    assert told == [
        "load new at 7",
        "evict left",
        "move stays 3 to 0",
        "move new 7 to 4",
        "load newer at 6",
    ]
    assert all(isinstance(outcome, Completion) for outcome in outcomes.values())


def test_what_failed_to_load_is_not_moved() -> None:
    told, outcomes = run_plan_that_moves(broken_adapter="new")
    assert told == ["load new at 7", "evict left", "move stays 3 to 0", "load newer at 6"]
    failed = [name for name, outcome in outcomes.items() if isinstance(outcome, Failure)]
    assert failed == ["new"]
    assert set(outcomes) == {"left", "stays", "new", "newer"}


def test_what_was_not_loaded_is_not_counted_and_loading_is_all_that_is_timed() -> None:
    for broken_adapter, loads in (("", {"stream": 1}), ("a", {})):
        records = Records()
        engine = start(FakeRunner(broken_adapter), records)
        add(engine, "a", 2, max_tokens=2)
        engine.add_request(
            Request(id="base", line=1, prompt_token_ids=(3, 4), sampling=SamplingParams(max_tokens=1)), None
        )
        while engine.has_work:
            engine.step()
        counted = [(step.loads_by_strategy, step.adapter_load_ms) for step in records.steps]
        assert counted[0] == (loads, LOAD_MS if loads else 0.0)
        assert all(each == ({}, 0.0) for each in counted[1:])
