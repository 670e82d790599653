"""What answers and steps tell of cold adapters, by real engines: on the CPU, and the GPU's way on CPU tensors
over a link so slow that copies are under way for several steps."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from caraserve_cli.adapters import copy_lane, transfers
from caraserve_cli.coldstart import assistant
from caraserve_cli.core import ColdStart, Completion, Request, SamplingParams
from caraserve_cli.engine.gpu_inputs import GpuInputs
from caraserve_cli.events import StepRecord
from caraserve_cli.fleet.local import LocalReplica
from caraserve_cli.fleet.options import ColdStartName, ReplicaOptions
from caraserve_cli.fleet.surroundings import Surroundings
from caraserve_cli.report.metrics import RequestMetrics, measure
from tests.adapters.peft_variants import VARIANTS, write_variant
from tests.fleet.families import write_base
from tests.fleet.test_parity import Steps
from tests.moved_clock import MovedClock

COLD = VARIANTS[0].name
LINK_GBPS = 0.001


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cold")
    write_variant(folder / "adapters", VARIANTS[0], write_base("llama2", folder / "base"), seed=1)
    return folder


def request(name: str, adapter: str | None, max_tokens: int) -> Request:
    sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    return Request(id=name, line=1, prompt_token_ids=(5, 6, 7), adapter=adapter, sampling=sampling)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> MovedClock:
    """Of the link and of whoever waits for it."""
    clock = MovedClock()
    monkeypatch.setattr(copy_lane, "time", clock)
    monkeypatch.setattr(transfers, "time", clock)
    return clock


def serve(
    folder: Path, cold_start: ColdStartName, clock: MovedClock, *, is_copied: bool
) -> tuple[dict[str, Completion], list[StepRecord]]:
    """A request of the base, then a cold one beside it, then one that finds the adapter there."""
    workers = {"cpu_workers": 1} if cold_start == "cpu-assist" else {}
    options = ReplicaOptions(
        base=str(folder / "base"),
        adapter_roots=(folder / "adapters",),
        device="cpu",
        dtype="float32",
        cold_start=cold_start,
        **workers,  # type: ignore[arg-type]
    )
    steps, surroundings = Steps(), Surroundings.prepare(options)
    replica = LocalReplica(surroundings, options, clock.now_ms, steps)
    if is_copied:
        replica.emulate_link(LINK_GBPS)
    surroundings.host_store.release(surroundings.host_store.acquire(COLD).name)  # it is in host memory
    replica.submit([request("base", None, 6)])
    answers = poll(replica, 1)
    replica.submit([request("cold", COLD, 3)])
    answers |= poll(replica, None)
    replica.submit([request("again", COLD, 1)])
    answers |= poll(replica, None)
    replica.close()
    surroundings.host_store.close()
    return answers, steps.records


def poll(replica: LocalReplica, num_steps: int | None) -> dict[str, Completion]:
    answers: dict[str, Completion] = {}
    while replica.num_unfinished and num_steps != 0:
        num_steps = None if num_steps is None else num_steps - 1
        for outcome in replica.poll():
            assert isinstance(outcome, Completion)
            answers[outcome.request.id] = outcome
    return answers


def measured(answers: Iterable[Completion]) -> dict[str, RequestMetrics]:
    return {answer.request.id: measure(answer) for answer in answers}


@pytest.mark.parametrize("cold_start", ["stream", "on-demand", "on-demand-blocking", "cpu-assist"])
def test_a_load_is_hidden_or_waited_for(
    folder: Path, cold_start: ColdStartName, clock: MovedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("caraserve_cli.fleet.surroundings.copies_adapters", lambda device: True)
    # A worker is not late because the machine is busy.
    monkeypatch.setattr(assistant, "_SLOWEST_FLOPS", 1.0)
    answers, steps = serve(folder, cold_start, clock, is_copied=True)
    metrics = measured(answers.values())
    cold, base, again = metrics["cold"], metrics["base"], metrics["again"]
    assert cold.load_ms is not None
    assert cold.load_hidden_ms is not None
    link_ms = sum(step.adapter_bytes for step in steps) / LINK_GBPS / 1e6
    assert cold.load_ms == pytest.approx(link_ms, rel=0.01) or cold_start in ("stream", "cpu-assist")
    assert cold.load_ms > 0.99 * link_ms, "gaps in which nothing is queued come on top"
    assert cold.load_hidden_ms == max(0.0, cold.load_ms - cold.load_wait_ms)
    assert cold.load_wait_ms <= cold.ttft_ms
    is_assist = cold_start == "cpu-assist"
    assert (cold.load_wait_ms > 0) == (not is_assist)
    assert (cold.assisted_ms > 0) == is_assist
    stands_still = cold_start in ("stream", "on-demand-blocking")
    assert (base.stalled_ms > 0) == stands_still == any(step.others_stalled_ms for step in steps)
    assert base.load_ms is base.load_hidden_ms is again.load_ms is None
    assert base.load_wait_ms == again.load_wait_ms == again.stalled_ms == 0
    assert answers["again"].cold_start is ColdStart.RESIDENT
    assert [dict(step.loads_by_strategy) for step in steps if step.loads_by_strategy] == [{cold_start: 1}]


@pytest.mark.parametrize("cold_start", ["stream", "cpu-assist"])
def test_on_a_cpu_nothing_is_copied_or_waited_for(
    folder: Path, cold_start: ColdStartName, clock: MovedClock
) -> None:
    answers, steps = serve(folder, cold_start, clock, is_copied=False)
    for each in measured(answers.values()).values():
        assert each.load_ms is each.load_hidden_ms is None
        assert each.load_wait_ms == each.stalled_ms == each.room_wait_ms == 0
    assert sum(step.adapter_bytes for step in steps) == 0
    assert sum(step.stall_ms for step in steps) == 0
    assert sum(step.num_adapter_loads for step in steps) == 1
    assert (sum(step.num_assists for step in steps) > 0) == (cold_start == "cpu-assist")


def test_what_a_failed_launch_has_left_is_begun_by_who_waits_for_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU's way. The step that loads the adapter does not fit the memory, and no other step comes."""
    monkeypatch.setattr("caraserve_cli.fleet.surroundings.copies_adapters", lambda device: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    options = ReplicaOptions(
        base=str(folder / "base"),
        adapter_roots=(folder / "adapters",),
        device="cpu",
        dtype="float32",
        cold_start="on-demand",
    )
    surroundings = Surroundings.prepare(options)
    replica = LocalReplica(surroundings, options, lambda: 0.0, Steps())
    surroundings.host_store.release(surroundings.host_store.acquire(COLD).name)
    replica.submit([request("base", None, 2)])
    poll(replica, 1)
    send, num_sends = GpuInputs.send, itertools.count()

    def send_or_fail(self: GpuInputs, *args: Any) -> None:
        if next(num_sends) == 0:
            # Whoever was computed beside it has ended meanwhile.
            for sequence in list(replica._engine.scheduler.running):
                sequence.max_output_tokens = 1
            raise torch.OutOfMemoryError
        send(self, *args)

    monkeypatch.setattr(GpuInputs, "send", send_or_fail)
    replica.submit([request("cold", COLD, 2)])
    answers = poll(replica, 1000)
    assert set(answers) == {"base", "cold"}
    replica.close()
    surroundings.host_store.close()
