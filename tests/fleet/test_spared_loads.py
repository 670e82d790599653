"""Answers of one token whose adapters are not loaded, among others, some of the same adapters: with CPU
workers that come too late or cannot be had, a cache that preempts, prompts in chunks, in the batch and beside
it. The tokens are PEFT's."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import pytest

from caraserve_cli.coldstart import assistant
from caraserve_cli.coldstart.arrival import Arrival, Decision
from caraserve_cli.coldstart.assistant import Assistance, Assistant, AssistedSegment
from caraserve_cli.core import ColdStart, Completion, Request
from tests.fleet.test_parity import Oracle, Steps, answer, assert_same
from tests.fleet.test_partial_assist import NUM_LAYERS, Assists, oracle

__all__ = ["oracle"]


class Spare:
    """Loads nothing where that may be, some of it beside the others; who goes on is assisted in some layers,
    or streams."""

    name: ClassVar[str] = "auto"

    def __init__(self) -> None:
        self._chance = random.Random(0)

    def decide(self, arrival: Arrival) -> Decision:
        """See `ColdStartPolicy`."""
        beside_ms = self._chance.choice([0.0, 0.0, 1.0])
        if arrival.may_spare_load and arrival.can_assist and arrival.free_workers:
            return Decision(ColdStart.CPU_ASSIST, NUM_LAYERS, beside_ms=beside_ms, spares_load=True)
        cpu_layers = self._chance.choice([0, 3]) if arrival.can_assist and arrival.free_workers else 0
        how = ColdStart.CPU_ASSIST if cpu_layers else ColdStart.STREAM
        return Decision(how, cpu_layers, beside_ms=beside_ms)


def requests_of(oracle: Oracle, num_longer: int) -> list[Request]:
    """One in so many goes on after its first token."""
    return [
        each if number % num_longer == 0 else replace(each, sampling=replace(each.sampling, max_tokens=1))
        for number, each in enumerate(oracle.requests)
    ]


def serve(
    oracle: Oracle, monkeypatch: pytest.MonkeyPatch, *, is_gpu_way: bool, chunk: int, most_at_once: int
) -> tuple[dict[str, Completion], Steps]:
    """All answers; they are checked."""
    monkeypatch.setattr("caraserve_cli.fleet.surroundings.copies_adapters", lambda device: is_gpu_way)
    monkeypatch.setattr("caraserve_cli.fleet.local.choose_policy", lambda name, break_even: Spare())
    monkeypatch.setattr(assistant, "_SLOWEST_FLOPS", 1.0)
    requests = requests_of(oracle, 4)
    answers, steps = answer(
        oracle,
        requests,
        most_at_once=most_at_once,
        are_read=True,
        cold_start="cpu-assist",
        cpu_workers=2,
        prefill_chunk_tokens=chunk,
        kv_block_tokens=4,
        kv_memory="300KB",
        adapter_memory="900KB",
        max_running=12,
        max_batch_tokens=128,
    )
    assert len(answers) == len(requests)
    assert_same(oracle, answers)
    return answers, steps


@pytest.mark.parametrize("is_gpu_way", [False, True], ids=["CPU", "the GPU's way"])
@pytest.mark.parametrize(
    ("chunk", "fails_every"),
    # A prompt of 30 tokens has some hundreds of results in chunks of 1.
    [(1, None), (1, 401), (7, 97), (512, 29)],
    ids=["single tokens", "single tokens, some too late", "chunks, some too late", "whole, some too late"],
)
def test_tokens_are_pefts(
    oracle: Oracle, fails_every: int | None, chunk: int, is_gpu_way: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assists = Assists(monkeypatch, fails_every)
    answers, steps = serve(oracle, monkeypatch, is_gpu_way=is_gpu_way, chunk=chunk, most_at_once=12)
    num_spared = sum(record.num_spared_loads for record in steps.records)
    num_not_loaded = sum(
        each.cold_start is ColdStart.CPU_ASSIST
        and each.request.sampling.max_tokens == 1
        and each.timings.load is None
        for each in answers.values()
    )
    # Who was preempted is told of as it was admitted first.
    num_preempted = sum(each.num_preemptions > 0 for each in answers.values())
    assert abs(num_not_loaded - num_spared) <= num_preempted
    assert num_spared > 10
    late = [each for each in answers.values() if each.num_failed_assists]
    assert bool(late) == bool(assists.num_failed) == (fails_every is not None)
    assert all(each.cold_start is ColdStart.ON_DEMAND for each in late if not each.num_preemptions)


@pytest.mark.parametrize("is_gpu_way", [False, True], ids=["CPU", "the GPU's way"])
def test_where_no_worker_is_left_when_the_step_begins_the_adapter_is_loaded(
    oracle: Oracle, is_gpu_way: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every other step that is to be assisted; the device cannot stand in for them."""
    begin, num_begun, num_refused = Assistant.begin, 0, 0

    def begin_or_refuse(
        assistant: Assistant, segments: Sequence[AssistedSegment], num_tokens: int, cpu_layers: int
    ) -> Assistance | None:
        nonlocal num_begun, num_refused
        num_begun += 1
        if num_begun % 2:
            return begin(assistant, segments, num_tokens, cpu_layers)
        num_refused += 1
        return None

    monkeypatch.setattr(Assistant, "begin", begin_or_refuse)
    answers, steps = serve(oracle, monkeypatch, is_gpu_way=is_gpu_way, chunk=7, most_at_once=12)
    assert num_refused > 10
    assert sum(each.num_failed_assists for each in answers.values()) > 5
    assert sum(record.num_spared_loads for record in steps.records) > 5
