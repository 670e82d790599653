"""What is no cluster's head is told at once: Ray would try for minutes. Those that are heads: tests/cli."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from caraserve_cli.errors import InputError, OptionError

ray_address = pytest.importorskip("caraserve_cli.fleet.ray_address", exc_type=ModuleNotFoundError)


@pytest.fixture
def web_port() -> Iterator[int]:
    """Of a server such as Ray's dashboard."""
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_a_web_server(web_port: int) -> None:
    with pytest.raises(InputError, match=r"does not answer as the head of a Ray cluster; .*8265 is the dash"):
        ray_address.check_address(f"127.0.0.1:{web_port}")


def test_who_speaks_tls_is_asked_by_ray_alone(web_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setenv("RAY_USE_TLS", "1")
    monkeypatch.setattr(ray_address, "_check_head", lambda address, is_told: asked.append(address))
    ray_address.check_address(f"127.0.0.1:{web_port}")
    assert asked == [f"127.0.0.1:{web_port}"]


def test_who_takes_connections_and_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_address, "_CONNECT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(InputError, match="does not answer as the head"):
            ray_address.check_address(address)
    with pytest.raises(InputError, match="no Ray cluster listens at"):
        ray_address.check_address(address)


@pytest.mark.parametrize("address", ["here", ":6379", "host:", "host:port", "ray://host:1x"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(OptionError, match=f"'{address}' is no address; write HOST:PORT, or auto"):
        ray_address.check_address(address)
