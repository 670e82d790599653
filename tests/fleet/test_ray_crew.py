"""Ray actors on a machine that does not see the adapters: their files are sent there, once."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from caraserve_cli.adapters.library import AdapterLibrary
from caraserve_cli.core import Completion, Request, SamplingParams
from caraserve_cli.errors import InputError
from caraserve_cli.fleet import ray_calls, ray_crew
from caraserve_cli.fleet.crew import CrewEvent, Died, Replaced, Told
from caraserve_cli.fleet.local import LocalReplica, NoEvents
from caraserve_cli.fleet.options import ReplicaOptions
from caraserve_cli.fleet.ray_cluster import RayCluster
from caraserve_cli.fleet.surroundings import Surroundings
from tests.adapters.peft_variants import VARIANTS, write_variant
from tests.fleet.families import write_base
from tests.fleet.hosted_kinds import FarAway, FarFromAll, Full, Spread, Unable
from tests.processes import descendants

pytest.importorskip("ray")

ADAPTERS = [VARIANTS[0].name, VARIANTS[1].name]


def make_request(number: int) -> Request:
    return Request(
        id=f"r{number}",
        line=number,
        prompt_token_ids=(5, 6, 7 + number),
        adapter=ADAPTERS[number % 2],
        sampling=SamplingParams(max_tokens=8, ignore_eos=True),
    )


def test_adapters_are_sent_where_they_are_not_seen(tmp_path: Path) -> None:
    load = write_base("llama2", tmp_path / "base")
    for seed, variant in enumerate(VARIANTS[:2]):
        write_variant(tmp_path / "adapters", variant, load, seed=seed)
    options = ReplicaOptions(
        base=str(tmp_path / "base"), adapter_roots=(tmp_path / "adapters",), device="cpu", dtype="float32"
    )
    requests = [make_request(number) for number in range(6)]
    local = LocalReplica(Surroundings.prepare(options), options, lambda: 0.0, NoEvents())
    local.submit(requests)
    expected = {}
    while local.num_unfinished:
        expected.update({outcome.request.id: outcome for outcome in local.poll()})

    library = AdapterLibrary.scan(options.adapter_roots)
    with RayCluster(None, 2) as cluster:
        from caraserve_cli.fleet.ray_crew import RayCrew

        with pytest.raises(InputError, match=r"machine 'far' has no '.*base'; put the base there"):
            RayCrew(
                cluster, options, 1, is_on_gpu=False, library=library, clock_ms=lambda: 0.0, hosted=FarFromAll
            )
        with pytest.raises(InputError, match=r"could not begin: ModuleNotFoundError: No module named 'cara"):
            RayCrew(
                cluster, options, 1, is_on_gpu=False, library=library, clock_ms=lambda: 0.0, hosted=Unable
            )
        crew = RayCrew(
            cluster, options, 1, is_on_gpu=False, library=library, clock_ms=lambda: 0.0, hosted=FarAway
        )
        crew.submit(0, requests[:3])
        crew.submit(0, requests[3:])
        answers = {}
        until_s = time.monotonic() + 60
        while len(answers) < len(requests) and time.monotonic() < until_s:
            for event in crew.wait(1.0):
                assert isinstance(event, Told)
                answers.update({outcome.request.id: outcome for outcome in event.news.outcomes})
        crew.close()
    assert answers.keys() == expected.keys()
    for name, answer in answers.items():
        other = expected[name]
        assert isinstance(answer, Completion)
        assert isinstance(other, Completion)
        assert answer.token_ids == other.token_ids


def watch(crew: ray_crew.RayCrew, kind: type[CrewEvent]) -> CrewEvent:
    """The first event of a kind."""
    until_s = time.monotonic() + 120
    while time.monotonic() < until_s:
        for event in crew.wait(0.5):
            if isinstance(event, kind):
                return event
    raise AssertionError("it is waited for in vain")


def bury_all(crew: ray_crew.RayCrew) -> None:
    while True:
        watch(crew, Died)
        crew.replace(0)


def test_nobody_is_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that did not reach a replica, a stopped process, and in the end no cluster any more."""
    monkeypatch.setattr(ray_crew, "_QUIET_S", 1.0)
    # Ray finds out sooner that a machine is gone.
    monkeypatch.setenv("RAY_health_check_period_ms", "500")
    monkeypatch.setenv("RAY_health_check_timeout_ms", "500")
    monkeypatch.setenv("RAY_health_check_failure_threshold", "2")
    # It waits for so long for a stopped process to end itself, before it gives its place to another.
    monkeypatch.setenv("RAY_kill_worker_timeout_milliseconds", "500")
    library = AdapterLibrary.scan(())
    options = ReplicaOptions(base="of nobody", device="cpu")
    with RayCluster(None, 1) as cluster:
        crew = ray_crew.RayCrew(
            cluster, options, 1, is_on_gpu=False, library=library, clock_ms=lambda: 0.0, hosted=Full
        )
        crew.submit(0, [make_request(0), make_request(1)])
        died = watch(crew, Died)
        assert isinstance(died, Died)
        assert "No space left" in died.reason

        monkeypatch.setitem(ray_calls.MOST_SILENCE_S, "poll", 4.0)
        crew.replace(0)
        watch(crew, Replaced)
        os.kill(crew.hosts[0].pid, signal.SIGSTOP)
        time.sleep(5.0)  # as if this process had been stopped, too
        os.kill(crew.hosts[0].pid, signal.SIGCONT)
        assert not [event for event in crew.wait(0.0) if isinstance(event, Died)], "nobody has looked"
        os.kill(crew.hosts[0].pid, signal.SIGSTOP)
        died = watch(crew, Died)
        assert isinstance(died, Died)
        assert "not answered" in died.reason
        crew.replace(0)
        watch(crew, Replaced)

        (raylet,) = descendants("raylet")
        raylet.kill()
        with pytest.raises(InputError, match=r"the Ray cluster has ended.*--resume"):
            bury_all(crew)
        crew.close()


def test_who_comes_to_another_machine_shares_it_with_the_living(tmp_path: Path) -> None:
    """One of two on a machine dies and is not replaced; one of another machine comes there: it has the half
    that is free, and no third."""
    options = ReplicaOptions(base="of nobody", device="cpu", adapter_roots=(tmp_path,))
    with RayCluster(None, 3) as cluster:
        crew = ray_crew.RayCrew(
            cluster,
            options,
            3,
            is_on_gpu=False,
            library=AdapterLibrary.scan(()),
            clock_ms=lambda: 0.0,
            hosted=Spread,
        )
        (moving,) = (number for number, host in enumerate(crew.hosts) if host.host_name == "far")
        dying, living = (number for number in range(3) if number != moving)
        assert crew.descriptions[moving].device == "(0, 1, 2, 3, 4, 5)"
        halves = {crew.descriptions[number].device for number in (dying, living)}
        assert halves == {"(0, 1, 2)", "(3, 4, 5)"}
        for number in (dying, moving):
            os.kill(crew.hosts[number].pid, signal.SIGKILL)
            died = watch(crew, Died)
            assert isinstance(died, Died)
            assert died.replica == number
        crew.replace(moving)
        watch(crew, Replaced)
        assert crew.hosts[moving].host_name == "near"
        assert crew.descriptions[moving].device == crew.descriptions[dying].device
        crew.close()
