"""A replica of a benchmark: what is on its device, and when requests reach it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import psutil
import pytest

from caraserve_cli.bench.bench_replica import BenchReplica
from caraserve_cli.core import ColdStart, Completion, Request, SamplingParams
from caraserve_cli.fleet.options import ReplicaOptions
from caraserve_cli.fleet.surroundings import Surroundings
from caraserve_cli.fleet.synthetic_adapter import SyntheticAdapter
from caraserve_cli.fleet.synthetic_adapters import SyntheticAdapters
from tests.cli.command import SAMPLE

ADAPTERS = tuple(SyntheticAdapter(2, ("q_proj",), copy) for copy in range(3))
NAMES = tuple(adapter.name for adapter in ADAPTERS)


@pytest.fixture(scope="module")
def replica() -> BenchReplica:
    options = ReplicaOptions(
        base=str(SAMPLE / "base"), weights="random", device="cpu", dtype="float32", kv_memory="4MB"
    )
    surroundings = Surroundings.prepare(options, SyntheticAdapters(ADAPTERS, packed=False).source)
    return BenchReplica(surroundings, options, NAMES)


def test_its_workers_end_with_it() -> None:
    options = ReplicaOptions(
        base=str(SAMPLE / "base"), device="cpu", dtype="float32", cold_start="cpu-assist", cpu_workers=1
    )
    before = set(psutil.Process().children(recursive=True))
    surroundings = Surroundings.prepare(options, SyntheticAdapters(ADAPTERS, packed=True).source)
    replica = BenchReplica(surroundings, options, NAMES)
    assert set(psutil.Process().children(recursive=True)) > before
    replica.close()
    surroundings.host_store.close()
    assert set(psutil.Process().children(recursive=True)) == before


def requests(*arrivals_ms: float) -> list[Request]:
    return [
        Request(
            id=str(index),
            line=index + 1,
            prompt_token_ids=(index + 1, 2, 3),
            adapter=name,
            sampling=SamplingParams(max_tokens=3, ignore_eos=True),
            arrival_ms=arrival_ms,
        )
        for index, (name, arrival_ms) in enumerate(zip(NAMES, arrivals_ms, strict=True))
    ]


def completed(outcomes: Sequence[object]) -> list[Completion]:
    found = [each for each in outcomes if isinstance(each, Completion)]
    assert len(found) == len(outcomes)
    return sorted(found, key=lambda each: each.request.id)


def test_no_request_is_submitted_before_it_arrives(replica: BenchReplica) -> None:
    """Given in any order; the last two so late that the replica has nothing to do meanwhile."""
    replica.set_out("stream", NAMES, None)
    served = replica.answer_in_time(requests(60.0, 0.0, 120.0))
    answers = completed(served.outcomes)
    assert [each.timings.arrival_ms - served.started_ms for each in answers] == pytest.approx([60, 0, 120])
    for each in answers:
        assert each.timings.first_scheduled_ms is not None
        assert each.timings.first_scheduled_ms >= each.timings.arrival_ms
    assert served.steps[0].start_ms >= served.started_ms
    assert replica.num_unfinished == 0


def test_adapters_are_cold_but_for_cached_ones(replica: BenchReplica) -> None:
    for strategy, is_resident in (("cached", True), ("stream", False), ("cached", True)):
        replica.set_out(strategy, NAMES, None)
        answers = completed(replica.answer_in_time(requests(0.0, 0.0, 0.0)).outcomes)
        assert [each.cold_start is ColdStart.RESIDENT for each in answers] == [is_resident] * 3


def test_adapters_leave_with_their_last_request_where_none_is_kept(replica: BenchReplica) -> None:
    """Five requests in turn for one adapter, each alone: every one is a cold start, or only the first."""
    first, _, _ = requests(0.0, 0.0, 0.0)
    for keeps_adapters, num_resident in ((False, 0), (True, 4)):
        replica.set_out("stream", NAMES, None)
        answers: list[Completion] = []
        for _ in range(5):
            answers += completed(replica.answer_in_time([first], keeps_adapters=keeps_adapters).outcomes)
        assert sum(each.cold_start is ColdStart.RESIDENT for each in answers) == num_resident


def test_an_adapter_that_another_request_has_stays(replica: BenchReplica) -> None:
    """The second one arrives while the first is answered, and ends after it."""
    first, second, _ = requests(0.0, 0.0, 0.0)
    both = [
        dataclasses.replace(first, adapter=NAMES[0]),
        dataclasses.replace(second, adapter=NAMES[0], sampling=SamplingParams(max_tokens=9, ignore_eos=True)),
    ]
    replica.set_out("stream", NAMES, None)
    answers = completed(replica.answer_in_time(both, keeps_adapters=False).outcomes)
    assert [len(each.token_ids) for each in answers] == [3, 9]
