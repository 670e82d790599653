"""`--replicas` and `--ray` as a user meets them: real Ray, real processes, real kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.cli.command import (
    SAMPLE,
    Row,
    assert_refused,
    caraserve_command,
    read_rows,
    rows_by_id,
    user_environment,
    write_rows,
)
from tests.cli.conftest import Caraserve
from tests.cli.forked import run_forked
from tests.processes import is_running

pytest.importorskip("ray")

JOB = ("run", "--base", SAMPLE / "base", "--adapters", SAMPLE / "adapters", "--device", "cpu")
# What an answer is; the other keys are times.
ANSWER_KEYS = ("adapter", "text", "token_ids", "finish_reason", "prompt_tokens", "completion_tokens")
NUM_ROWS = 240
WAIT_S = 120.0


def make_rows() -> list[Row]:
    """Answers that take a while, over several adapters, greedy and drawn, and a row that fails."""
    adapters = ["reverse", "sort", "double", "team/roman", "spell", None]
    rows: list[Row] = [
        {
            "id": f"r{number}",
            "prompt": f"Input: {'abcdefgh'[number % 5 :]}\nOutput: ",
            "adapter": adapters[number % len(adapters)],
            "max_tokens": 48,
            "ignore_eos": True,
            "temperature": 0.8 * (number % 3 == 0),
        }
        for number in range(NUM_ROWS)
    ]
    rows.insert(7, {"id": "too long", "prompt_token_ids": [5] * 5000})
    return rows


def answers_in(out: Path) -> dict[str, Row]:
    by_id = rows_by_id(out / "outputs.jsonl")
    return {name: {key: row.get(key) for key in ANSWER_KEYS} for name, row in by_id.items()}


@pytest.fixture(scope="module")
def requests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("replicas") / "requests.jsonl", make_rows())


@pytest.fixture(scope="module")
def arguments(requests: Path) -> list[str | Path]:
    return [*JOB, "--dtype", "float32", "--max-running", "16", "--token-ids", requests]


@pytest.fixture(scope="module")
def alone(arguments: list[str | Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Row]:
    """What one replica in the process itself answers."""
    out = tmp_path_factory.mktemp("alone") / "out"
    assert run_forked(*arguments, "--out", out).returncode == 3
    return answers_in(out)


class Running:
    """A run of several replicas in a process of its own."""

    def __init__(self, arguments: list[str | Path], out: Path, *more: str) -> None:
        self.out = out
        self.process = subprocess.Popen(
            caraserve_command(*arguments, "--out", out, *more),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=user_environment(),
        )
        self.family: list[psutil.Process] = []

    def wait_for_rows(self, num_rows: int) -> None:
        outputs = self.out / "outputs.jsonl"
        self.wait_for(lambda: outputs.exists() and outputs.read_bytes().count(b"\n") >= num_rows)

    def wait_for(self, happened: Callable[[], object]) -> None:
        """Keeps the family up to date meanwhile."""
        until_s = time.monotonic() + WAIT_S
        while not happened():
            assert time.monotonic() < until_s, "it takes too long"
            assert self.process.poll() is None, self.process.stderr and self.process.stderr.read().decode()
            self.note_family()  # which looks at all processes of the machine
            time.sleep(0.1)
        self.note_family()

    def note_family(self) -> None:
        for process in psutil.Process(self.process.pid).children(recursive=True):
            if process not in self.family:
                self.family.append(process)

    def replicas(self) -> list[psutil.Process]:
        return [process for process in self.family if is_replica(process)]

    def finish(self) -> tuple[int, str, str]:
        """Exit status, stdout and stderr."""
        out, err = self.process.communicate(timeout=WAIT_S)
        return self.process.returncode, out.decode(), err.decode()

    def assert_nobody_is_left(self) -> None:
        _, alive = psutil.wait_procs(self.family, timeout=20)
        assert alive == []


def is_replica(process: psutil.Process) -> bool:
    try:
        return "HostedReplica" in " ".join(process.cmdline())
    except psutil.Error:
        return False


@pytest.fixture
def start(arguments: list[str | Path], tmp_path: Path) -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def run(*more: str) -> Running:
        started.append(Running(arguments, tmp_path / "out", "--replicas", "2", *more))
        return started[-1]

    yield run
    for each in started:
        each.process.kill()
        each.process.communicate()


def test_two_replicas_answer_as_one(start: Callable[..., Running], alone: dict[str, Row]) -> None:
    running = start()
    running.wait_for_rows(1)
    exit_status, out, err = running.finish()
    assert exit_status == 3, err
    assert answers_in(running.out) == alone
    (error,) = read_rows(running.out / "errors.jsonl")
    assert (error["id"], error["code"]) == ("too long", "prompt_too_long")
    report = json.loads((running.out / "report.json").read_bytes())
    fleet = report["fleet"]
    assert (fleet["placement"], fleet["models"]) == ("rank-aware", "assumed")
    assert (fleet["replaced_replicas"], fleet["requests_placed_again"]) == (0, 0)
    assert sum(replica["answered"] for replica in fleet["replicas"]) == NUM_ROWS
    assert min(replica["answered"] for replica in fleet["replicas"]) > NUM_ROWS / 4
    assert sum(replica["steps"] for replica in fleet["replicas"]) == report["engine"]["steps"]
    assert report["timeline"]["replicas"] == 2
    by_replica = Counter(row["replica"] for row in read_rows(running.out / "outputs.jsonl"))
    assert by_replica == {replica["name"]: replica["answered"] for replica in fleet["replicas"]}
    assert {entry["replica"] for entry in report["slowest"]} <= by_replica.keys()
    assert max(replica["busy_ms"] for replica in fleet["replicas"]) <= 1000 * report["run"]["duration_s"]
    trace = json.loads((running.out / "trace.json").read_bytes())["traceEvents"]
    answered_by = [e["args"]["replica"] for e in trace if e["ph"] == "b" and "tokens" in e["args"]]
    assert Counter(answered_by) == by_replica
    assert {"replica 0", "replica 1"} <= {e["args"]["name"] for e in trace if e["name"] == "process_name"}
    assert "replica-1" in (running.out / "report.html").read_text()
    assert "2 replicas" in out
    assert "Traceback" not in err
    assert "raylet" not in out + err
    running.assert_nobody_is_left()


def test_a_killed_replica_is_replaced_and_each_id_answered_once(
    start: Callable[..., Running], alone: dict[str, Row]
) -> None:
    running = start("--placement", "most-idle")
    running.wait_for_rows(20)
    victim = running.replicas()[0]
    os.kill(victim.pid, signal.SIGKILL)
    exit_status, out, err = running.finish()
    assert exit_status == 3, err
    assert answers_in(running.out) == alone
    assert len(read_rows(running.out / "errors.jsonl")) == 1
    fleet = json.loads((running.out / "report.json").read_bytes())["fleet"]
    assert sum(replica["deaths"] for replica in fleet["replicas"]) == 1
    assert fleet["requests_placed_again"] > 0
    assert f"{fleet['requests_placed_again']:,} requests placed again" in out
    (name,) = (replica["name"] for replica in fleet["replicas"] if replica["death_reasons"])
    assert f"{name} died because its process ended" in out
    assert f"{name} died, because its process ended; another takes its place" in err
    assert "Traceback" not in err
    running.assert_nobody_is_left()


def test_a_stopped_run_leaves_no_process_and_goes_on(
    start: Callable[..., Running], arguments: list[str | Path], alone: dict[str, Row]
) -> None:
    running = start()
    running.wait_for_rows(20)
    os.kill(running.process.pid, signal.SIGTERM)
    exit_status, _, err = running.finish()
    assert exit_status == 130
    assert err.splitlines()[-1].startswith("Stopped. To go on: ")
    running.assert_nobody_is_left()
    # With another number of replicas: it changes no answer.
    assert run_forked(*arguments, "--out", running.out, "--resume").returncode == 3
    assert answers_in(running.out) == alone


def test_a_start_that_is_stopped_leaves_no_process(start: Callable[..., Running]) -> None:
    running = start()
    running.wait_for(running.replicas)
    os.kill(running.process.pid, signal.SIGINT)
    exit_status, out, err = running.finish()
    assert (exit_status, out) == (130, "")
    assert err.splitlines()[-1] == "caraserve: stopped before anything was answered"
    assert "Traceback" not in err
    running.assert_nobody_is_left()


def test_without_the_head_of_its_cluster_a_run_ends_and_goes_on(
    start: Callable[..., Running], arguments: list[str | Path], alone: dict[str, Row]
) -> None:
    rate = ("--rate", "10")  # so that it is not done before it is noticed
    running = start(*rate)
    running.wait_for_rows(3)
    (head,) = (process for process in running.family if is_running(process, "gcs_server"))
    head.kill()
    exit_status, _, err = running.finish()
    assert exit_status == 1
    assert "the Ray cluster has ended: its head at" in err.splitlines()[-1]
    assert "--resume" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert "gcs_server.out" not in err, "Ray says it in its own words"
    running.assert_nobody_is_left()
    ended = run_forked(*arguments, "--out", running.out, "--resume", *rate)
    assert ended.returncode == 3, ended.stderr
    assert answers_in(running.out) == alone


def test_a_killed_driver_leaves_no_process(start: Callable[..., Running]) -> None:
    running = start()
    running.wait_for_rows(5)
    os.kill(running.process.pid, signal.SIGKILL)
    running.process.wait()
    running.assert_nobody_is_left()


def test_what_cannot_be_had_is_refused(
    caraserve: Caraserve, arguments: list[str | Path], tmp_path: Path
) -> None:
    out = ("--out", tmp_path / "out")
    assert_refused(caraserve(*arguments, *out, "--replicas", "0"), 2, "--replicas", "1")
    assert_refused(caraserve(*arguments, *out, "--replicas", "2", "--placement", "x"), 2, "--placement")
    assert_refused(caraserve(*arguments, *out, "--ray", "ray://a:1"), 2, "--ray", "Ray Client", "HOST:PORT")
    assert_refused(run_forked(*arguments, *out, "--ray", "127.0.0.1:1"), 1, "--ray", "127.0.0.1:1")
    assert_refused(caraserve(*arguments, *out, "--ray", "here"), 2, "--ray", "HOST:PORT")
    assert not (tmp_path / "out").exists()


def test_without_ray_one_replica_needs_none_of_it_and_more_say_what_to_install(
    arguments: list[str | Path], tmp_path: Path
) -> None:
    """As where it is not installed: nobody can find it."""
    code = (
        "import sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'ray': raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "import importlib.util\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *more: None if name == 'ray' else find(name, *more)\n"
        "from caraserve_cli.cli.main import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    loaded = [name for name in sys.modules if name.startswith('caraserve_cli.fleet.fleet_source')]\n"
        "    assert bool(loaded) == ('--replicas' in sys.argv), loaded\n"
    )

    def run(*more: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments), "--limit", "3", *map(str, more)],
            env=user_environment(),
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
        )

    alone = run("--out", tmp_path / "alone", "--placement", "random")
    assert alone.returncode == 0, alone.stderr
    assert "--placement: with one replica there is nothing to choose" in alone.stderr
    several = run("--out", tmp_path / "several", "--replicas", "2")
    assert_refused(several, 2, "--replicas", "pip install 'caraserve[ray]'")
    assert not (tmp_path / "several").exists()
