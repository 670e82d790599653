"""Workers killed in the middle of prefills, fifty in one run: nothing hangs, no answer is lost or wrong."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import time
from collections.abc import Sequence

import pytest

from caraserve_cli.coldstart.assistant import Assistance, Assistant, AssistedSegment
from caraserve_cli.core import Completion
from caraserve_cli.fleet.local import LocalReplica
from caraserve_cli.fleet.options import DeviceName, ReplicaOptions
from caraserve_cli.fleet.surroundings import Surroundings
from tests.fleet.test_parity import Oracle, Steps
from tests.fleet.test_partial_assist import ALL_WAYS, AnyOf, oracle

__all__ = ["oracle"]

NUM_KILLS = 50
# Longer than any machine needs to start a worker anew; who waits for it has failed.
_PATIENCE_S = 120.0


class _Killer:
    """Kills one of the workers that were given a part of a step, just before the step is queued."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.killed: set[int] = set()
        chance, begin = random.Random(0), Assistant.begin

        def begin_and_kill(
            assistant: Assistant, segments: Sequence[AssistedSegment], num_tokens: int, cpu_layers: int
        ) -> Assistance | None:
            assistance = begin(assistant, segments, num_tokens, cpu_layers)
            # That one is dead the pool does not see at once.
            pids = {seat.pid for seat in assistant._pool._seats if seat.given and seat.pid} - self.killed
            if assistance is not None and pids and len(self.killed) < NUM_KILLS:
                # At once, or when it has computed a part of the layers.
                time.sleep(chance.choice((0.0, 0.001)))
                victim = chance.choice(sorted(pids))
                os.kill(victim, signal.SIGKILL)
                self.killed.add(victim)
            return assistance

        monkeypatch.setattr(Assistant, "begin", begin_and_kill)


def run_and_kill(oracle: Oracle, device: DeviceName, monkeypatch: pytest.MonkeyPatch) -> Steps:
    """Answer the oracle's requests again and again until enough workers were killed, and once more."""
    killer = _Killer(monkeypatch)
    options = ReplicaOptions(
        base=str(oracle.base),
        adapter_roots=(oracle.adapters,),
        dtype="float32",
        device=device,
        cold_start="cpu-assist",
        cpu_workers=2,
        kv_block_tokens=4,
        adapter_memory="900KB",
        max_running=12,
        max_batch_tokens=128,
    )
    surroundings, steps = Surroundings.prepare(options), Steps()
    replica = LocalReplica(surroundings, options, lambda: 0.0, steps)
    replica._engine.scheduler.cold_starts.policy = AnyOf(ALL_WAYS)
    until_s = time.monotonic() + _PATIENCE_S
    answers: dict[str, Completion] = {}
    num_requests, rounds_left = 0, 2
    while rounds_left:
        # Names of their own in every round: none may be answered twice.
        round_of = [dataclasses.replace(r, id=f"{r.id}/{num_requests}") for r in oracle.requests]
        num_requests += len(round_of)
        replica.submit(round_of)
        while replica.num_unfinished:
            for outcome in replica.poll():
                assert isinstance(outcome, Completion), outcome
                assert outcome.request.id not in answers
                name = outcome.request.id.split("/")[0]
                assert list(outcome.token_ids) == oracle.answers[name], outcome.request.id
                answers[outcome.request.id] = outcome
            replica.check_integrity()
        assert time.monotonic() < until_s, f"{len(killer.killed)} killed"
        rounds_left -= len(killer.killed) == NUM_KILLS
    assert len(answers) == num_requests
    assert replica._assistant is not None
    replica._assistant._pool.poll()
    assert replica._assistant.num_lost_workers >= NUM_KILLS - 2, "lost workers are counted"
    replica.close()
    surroundings.host_store.close()
    return steps


def test_fifty_killed_workers_cost_no_answer(oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caraserve_cli.fleet.surroundings.copies_adapters", lambda device: True)
    run_and_kill(oracle, "cpu", monkeypatch)
