from __future__ import annotations

import socket
import time

import pytest

from caraserve_cli.errors import InputError
from caraserve_cli.fleet import head_watch
from caraserve_cli.fleet.head_watch import HeadWatch


def test_a_head_may_be_away_for_a_while_and_not_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_watch, "_INTERVAL_S", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as head:
        port = head.getsockname()[1]
        watch = HeadWatch(f"127.0.0.1:{port}", patience_s=0.2)
        watch.check()
        assert watch.is_there
    watch.check()
    assert not watch.is_there, "and nothing is raised yet"
    with socket.create_server(("127.0.0.1", port), reuse_port=True):
        watch.check()
        assert watch.is_there
    time.sleep(0.25)
    with pytest.raises(InputError, match=f"its head at 127.0.0.1:{port} has not answered for .*--resume"):
        watch.check()
    assert not watch.is_there


def test_it_is_not_looked_for_all_the_time() -> None:
    watch = HeadWatch("127.0.0.1:1", patience_s=0.0)
    watch.check()
    assert watch.is_there, "it was seen just now"
