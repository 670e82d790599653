"""Adapters that are not in host memory, by hand: a disk of 1 MB a millisecond that needs 5 ms to begin, and a
link as fast that needs nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from caraserve_cli.perf.link import LinkModel
from caraserve_cli.placement.replica_facts import ReplicaFacts
from tests.placement.fleets import MB, QUALITY, replica
from tests.simulation.fleets import adapter, answers_of, simulated, small_fleet, small_requests

DISK = LinkModel(5.0, 1e6, QUALITY)


def _reading(facts: ReplicaFacts, host_bytes: int) -> ReplicaFacts:
    return replace(facts, disk=DISK, host_adapter_bytes=host_bytes)


def test_an_adapter_is_read_before_it_is_copied_and_kept() -> None:
    """Read until 105, copied until 205. Later it is in host memory, and was evicted from the device's pool,
    which holds one."""
    x, y = adapter("x", 8, 100 * MB), adapter("y", 8, 100 * MB)
    requests = [
        simulated("first", 0, 10, 1, x),
        simulated("other", 1000, 10, 1, y),
        simulated("again", 2000, 10, 1, x),
    ]
    facts = _reading(replica("r", pool_bytes=150 * MB), 1000 * MB)
    answers = answers_of(requests, [facts], check=True)
    ttfts_ms = [answers[name].ttft_ms for name in ("first", "other", "again")]
    assert ttfts_ms == pytest.approx([205 + 10.08, 205 + 10.08, 100 + 10.08])


def test_host_memory_keeps_what_was_needed_last() -> None:
    """It holds two of three: x is needed again after y, and z takes the place of y."""
    names = ("x", "y", "x", "z", "x", "y")
    made = {name: adapter(name, 8, 100 * MB) for name in names}
    requests = [simulated(f"{n}", 1000.0 * n, 10, 1, made[name]) for n, name in enumerate(names)]
    facts = _reading(replica("r", pool_bytes=150 * MB), 200 * MB)
    answers = answers_of(requests, [facts])
    read = [answers[f"{n}"].ttft_ms > 150 for n in range(len(names))]
    assert read == [True, True, False, True, False, True]


def test_others_go_on_meanwhile() -> None:
    requests = [simulated("base", 0, 10, 30), simulated("cold", 15, 10, 2, adapter("x", 8, 300 * MB))]
    answers = answers_of(requests, [_reading(replica("r"), 1000 * MB)], check=True)
    assert answers["base"].last_token_ms == pytest.approx(10 + 29 * 20, abs=20)
    assert answers["cold"].first_token_ms > 15 + 305 + 300


@pytest.mark.parametrize("steps_in_flight", [1, 2])
def test_every_request_is_answered_however_small_the_host_is(steps_in_flight: int) -> None:
    requests = small_requests(rate_per_s=15, num_requests=60)
    fleet = [replace(_reading(each, 300 * MB), steps_in_flight=steps_in_flight) for each in small_fleet(2)]
    for cold_start in ("auto", "on-demand"):
        answers = answers_of(requests, fleet, "random", cold_start=cold_start, check=True)
        assert len(answers) == len(requests)
