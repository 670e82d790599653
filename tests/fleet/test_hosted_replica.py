"""What runs in the process of a replica, here in the test's own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from caraserve_cli.core import Completion, Failure, Request, SamplingParams
from caraserve_cli.fleet import hosted_engine
from caraserve_cli.fleet.host import share_out
from caraserve_cli.fleet.host_clock import monotonic_ms
from caraserve_cli.fleet.hosted_replica import HostedReplica
from caraserve_cli.fleet.local import LocalReplica, NoEvents
from caraserve_cli.fleet.messages import MachineShare, Refusal, ReplicaDescription, ReplicaNews
from caraserve_cli.fleet.options import ReplicaOptions
from caraserve_cli.fleet.shipped_adapters import pack_config, pack_weights
from caraserve_cli.fleet.surroundings import Surroundings
from tests.adapters.peft_variants import VARIANTS, write_variant
from tests.fleet.families import write_base

ADAPTER = VARIANTS[0].name
WAIT_S = 60.0


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> ReplicaOptions:
    folder = tmp_path_factory.mktemp("hosted")
    load = write_base("llama2", folder / "base")
    write_variant(folder / "adapters", VARIANTS[0], load, seed=1)
    return ReplicaOptions(
        base=str(folder / "base"), adapter_roots=(folder / "adapters",), device="cpu", dtype="float32"
    )


@pytest.fixture
def share() -> MachineShare:
    return share_out(sorted(os.sched_getaffinity(0)), 2 * 10**9, 0, 2, 1)


@pytest.fixture
def hosted() -> Iterator[HostedReplica]:
    replica = HostedReplica()
    yield replica
    replica.close()


def make_request(number: int, max_tokens: int = 20, num_prompt: int = 5) -> Request:
    return Request(
        id=f"r{number}",
        line=number,
        prompt_token_ids=tuple(range(number + 5, number + 5 + num_prompt)),
        adapter=ADAPTER if number % 2 else None,
        sampling=SamplingParams(max_tokens=max_tokens, ignore_eos=True),
    )


def collect(replica: HostedReplica, num_outcomes: int) -> ReplicaNews:
    """All news until so many have ended."""
    total = ReplicaNews()
    while len(total.outcomes) < num_outcomes:
        news = replica.poll(WAIT_S)
        total.outcomes += news.outcomes
        total.started += news.started
        total.records += news.records
        total.adapters_came += news.adapters_came
        total.num_running = news.num_running
    return total


def test_it_answers_as_a_local_replica_does(
    hosted: HostedReplica, options: ReplicaOptions, share: MachineShare
) -> None:
    requests = [make_request(number) for number in range(10)] + [make_request(10, num_prompt=200)]
    local = LocalReplica(Surroundings.prepare(options), options, lambda: 0.0, NoEvents())
    local.submit(requests)
    expected = {}
    while local.num_unfinished:
        expected.update({outcome.request.id: outcome for outcome in local.poll()})

    described = hosted.start(options, share)
    assert isinstance(described, ReplicaDescription)
    assert described.config.max_context_tokens == 128
    assert described.profile is None
    hosted.submit(requests, monotonic_ms())
    news = collect(hosted, len(requests))
    for outcome in news.outcomes:
        other = expected[outcome.request.id]
        if isinstance(outcome, Completion):
            assert isinstance(other, Completion)
            assert outcome.token_ids == other.token_ids
            assert outcome.timings.first_token_ms is not None
            assert outcome.timings.first_token_ms > 0
        else:
            assert isinstance(other, Failure)
            assert (outcome.code, outcome.message) == (other.code, other.message)
    assert sorted(news.started) == sorted(request.id for request in requests[:10])
    assert news.adapters_came == [ADAPTER]
    assert sum(record.num_decode_tokens for record in news.records) > 0
    assert sum(record.num_answer_tokens for record in news.records) == sum(
        len(outcome.token_ids) for outcome in news.outcomes if isinstance(outcome, Completion)
    )
    assert hosted.poll(0.0).outcomes == []


def test_its_memory_is_its_share_of_what_is_free(
    hosted: HostedReplica, options: ReplicaOptions, share: MachineShare
) -> None:
    described = hosted.start(options, share)
    assert isinstance(described, ReplicaDescription)
    whole = Surroundings.prepare(replace(options, host_memory_bytes=4 * 10**9)).engine_config
    half = Surroundings.prepare(replace(options, host_memory_bytes=2 * 10**9)).engine_config
    whole_bytes, half_bytes = whole.adapter_memory_bytes, half.adapter_memory_bytes
    assert half_bytes < whole_bytes
    # Of what is free at once, half is for each of two.
    assert described.config.adapter_memory_bytes == pytest.approx(
        Surroundings.prepare(
            replace(options, host_memory_bytes=share.host_bytes)
        ).engine_config.adapter_memory_bytes
    )


def test_what_a_user_can_cause_is_told_as_it_is(
    hosted: HostedReplica, options: ReplicaOptions, share: MachineShare, tmp_path: Path
) -> None:
    refusal = hosted.start(replace(options, base=str(tmp_path / "nothing")), share)
    assert isinstance(refusal, Refusal)
    assert refusal.exit_status == 1
    assert "nothing' does not exist" in refusal.message


def test_what_ends_its_engine_is_raised_where_it_is_asked(
    hosted: HostedReplica, options: ReplicaOptions, share: MachineShare, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosted.start(options, share)

    def fail(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(hosted_engine.HostedEngine, "take_started", fail)
    hosted.submit([make_request(0)], monotonic_ms())
    with pytest.raises(ZeroDivisionError, match="a bug"):
        hosted.poll(WAIT_S)


def test_adapters_that_are_not_seen_are_shipped(
    hosted: HostedReplica, options: ReplicaOptions, share: MachineShare
) -> None:
    folder = options.adapter_roots[0] / ADAPTER
    local = LocalReplica(Surroundings.prepare(options), options, lambda: 0.0, NoEvents())
    local.submit([make_request(1)])
    while not (expected := local.poll()):
        pass
    described = hosted.start(replace(options, adapter_roots=()), share, {ADAPTER: pack_config(folder)})
    assert isinstance(described, ReplicaDescription)
    hosted.submit([make_request(1)], monotonic_ms(), [ADAPTER], pack_weights(folder))
    hosted.submit([make_request(3)], monotonic_ms())
    outcomes = {outcome.request.id: outcome for outcome in collect(hosted, 2).outcomes}
    assert isinstance(first := outcomes["r1"], Completion)
    assert isinstance(outcomes["r3"], Completion), "it needs no second parcel"
    assert isinstance(expected[0], Completion)
    assert first.token_ids == expected[0].token_ids
