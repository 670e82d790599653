"""When a head is taken for gone: one that nobody listens for, and one that is stopped and listens still."""

from __future__ import annotations

import secrets
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from caraserve_cli.errors import InputError
from caraserve_cli.fleet import head_watch
from caraserve_cli.fleet.head_watch import HeadWatch
from tests.cli.command import user_environment
from tests.processes import descendants


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(head_watch, "time", clock)
    return clock


@contextmanager
def answering(head: socket.socket) -> Iterator[int]:
    """Inside, whoever connects is answered; the port."""

    def answer() -> None:
        with suppress(OSError):  # it is closed
            while True:
                connection, _ = head.accept()
                with connection:
                    connection.recv(64)
                    connection.sendall(b"settings")

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        yield head.getsockname()[1]
    finally:
        head.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_head_may_be_away_for_a_while_and_not_for_good(clock: Clock) -> None:
    with socket.create_server(("127.0.0.1", 0)) as head, answering(head) as port:
        watch = HeadWatch(f"127.0.0.1:{port}", patience_s=5.0)
        clock.now_s += 3.0
        watch.check()
        assert watch.is_there
    clock.now_s += 3.0
    watch.check()
    assert not watch.is_there, "and nothing is raised yet"
    with socket.create_server(("127.0.0.1", port), reuse_port=True) as head, answering(head):
        clock.now_s += 3.0
        watch.check()
        assert watch.is_there
    for _ in range(2):
        clock.now_s += 3.0
        watch.check()
    clock.now_s += 3.0
    with pytest.raises(InputError, match=f"its head at 127.0.0.1:{port} has not answered for 6 s.*--resume"):
        watch.check()
    assert not watch.is_there


def test_a_head_may_be_silent_for_longer_and_not_for_good(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel takes connections for a stopped process, and for one that has no time for them."""
    monkeypatch.setattr(head_watch, "_ANSWER_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as head:
        watch = HeadWatch(f"127.0.0.1:{head.getsockname()[1]}", patience_s=5.0)
        clock.now_s += 3.0
        watch.check()
        clock.now_s += 57.0
        watch.check()
        assert watch.is_silent, "and nothing is raised yet"
        assert not watch.is_there
        monkeypatch.setattr(head_watch, "_ANSWER_S", 30.0)
        with answering(head) as port:
            clock.now_s += 3.0
            watch.check()
            assert watch.is_there
    monkeypatch.setattr(head_watch, "_ANSWER_S", 0.05)
    with socket.create_server(("127.0.0.1", port), reuse_port=True):
        clock.now_s += 3.0
        watch.check()
        assert watch.is_silent, "it is counted from now"
        clock.now_s += 61.0
        with pytest.raises(InputError, match=r"has not answered for 61 s.*--resume"):
            watch.check()


def test_who_has_not_looked_for_long_looks_again(clock: Clock) -> None:
    """A process that was stopped, or was busy, and finds the head away for a moment."""
    with socket.create_server(("127.0.0.1", 0)) as head:
        watch = HeadWatch(f"127.0.0.1:{head.getsockname()[1]}", patience_s=5.0)
    clock.now_s += 600.0
    watch.check()
    assert not watch.is_there, "and nothing is raised yet"


def test_it_is_not_looked_for_all_the_time() -> None:
    watch = HeadWatch("127.0.0.1:1", patience_s=0.0)
    watch.check()
    assert watch.is_there, "it was seen just now"


# Joins a cluster, its own or that of an address, stops its head, goes on until it is told, and ends as the
# command does.
DRIVER = """
import sys, time
import psutil
from caraserve_cli.cli import main as command
from caraserve_cli.errors import InputError
from caraserve_cli.fleet import head_watch, ray_cluster
from tests.processes import descendants

head_watch._SILENCE_S = ray_cluster._OWN_HEAD_S = ray_cluster._HEAD_S = 3.0
address, parent = sys.argv[1:]


def main():
    with ray_cluster.RayCluster(address or None) as cluster:
        (head,) = descendants("gcs_server", psutil.Process(int(parent) or None))
        for _ in range(2):
            cluster.check_machines()
            cluster.check_head()
            time.sleep(2.0)
        cluster.check_head()
        head.suspend()
        try:
            while True:
                cluster.check_machines()  # which was there when it was last looked for
                cluster.check_head()
                time.sleep(0.1)
        except InputError as error:
            print(error)
    sys.exit(0)


command.main = main
command.program()
"""


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """With room behind its path for that of Ray's sockets."""
    folder = Path("/tmp") / secrets.token_hex(3)
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("is_own", [True, False])
def test_a_stopped_head_ends_the_run_and_is_not_waited_for(is_own: bool, short_folder: Path) -> None:
    """A true one. Ray's own leave would wait for its answer without end."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    cluster, arguments = None, ["", "0"]
    if not is_own:
        args = {"num_cpus": 1, "num_gpus": 0, "include_dashboard": False}
        cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=args)
        arguments = [str(cluster.address), str(psutil.Process().pid)]
    try:
        ended = subprocess.run(
            [sys.executable, "-c", DRIVER, *arguments],
            capture_output=True,
            text=True,
            env=user_environment() | {"TMPDIR": str(short_folder)},
            timeout=150,
            check=False,
        )
    finally:
        if cluster is not None:
            for head in descendants("gcs_server"):
                head.resume()
            cluster.shutdown()
    assert ended.returncode == 0, ended.stderr
    (line,) = ended.stdout.splitlines()
    assert line.startswith("the Ray cluster has ended: its head at")
    assert line.endswith("give the same command with --resume")
    assert not list(short_folder.iterdir()), "nothing of an own cluster is left"
