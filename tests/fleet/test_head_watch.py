from __future__ import annotations

import socket

import pytest

from caraserve_cli.errors import InputError
from caraserve_cli.fleet import head_watch
from caraserve_cli.fleet.head_watch import HeadWatch


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


def test_a_head_may_be_away_for_a_while_and_not_for_good(clock: Clock) -> None:
    with socket.create_server(("127.0.0.1", 0)) as head:
        port = head.getsockname()[1]
        watch = HeadWatch(f"127.0.0.1:{port}", patience_s=5.0)
        clock.now_s += 3.0
        watch.check()
        assert watch.is_there
    clock.now_s += 3.0
    watch.check()
    assert not watch.is_there, "and nothing is raised yet"
    with socket.create_server(("127.0.0.1", port), reuse_port=True):
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
