"""A server on this machine that speaks as much of the Hugging Face Hub as reading a dataset takes.

Written after what `huggingface_hub` 2.4 and `datasets` 5.2 ask for, and the Hub's documented error codes
(`X-Error-Code`). Each folder OWNER/NAME is a dataset with one commit.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Collection
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"

_API = re.compile(
    r"/api/datasets/(?P<repo>[^/]+/[^/]+)(?P<what>/(?:revision|tree|paths-info)/[^/]+)?(?P<path>/.*)?"
)
_RESOLVE = re.compile(r"/datasets/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


class HubServer:
    """A context manager; `url` goes into HF_ENDPOINT.

    Args:
        folder: of OWNER/NAME.
        gated: datasets whose files nobody may have.

    Attributes:
        asked: methods and paths, in order.
        file_bytes: how much of files has been sent.
    """

    def __init__(self, folder: Path, gated: Collection[str] = ()) -> None:
        self.folder, self.gated = folder, gated
        self.asked: list[str] = []
        self.file_bytes = 0
        hub = self

        class Handler(_Handler):
            server_of_files = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of_files: HubServer

    def do_HEAD(self) -> None:
        self._answer(b"")

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Not on stderr."""

    def _answer(self, body: bytes) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.server_of_files.asked.append(f"{self.command} {self.path}")
        if (api := _API.fullmatch(path)) is not None:
            self._answer_api(api, body, url.query)
        elif (file := _RESOLVE.fullmatch(path)) is not None:
            self._answer_file(file)
        else:
            self._send(404, b"{}")

    def _answer_api(self, api: re.Match[str], body: bytes, query: str) -> None:
        folder = self.server_of_files.folder / api["repo"]
        if not folder.is_dir():
            return self._refuse(401, "RepoNotFound")
        kind, _, revision = (api["what"] or "/revision/main").removeprefix("/").partition("/")
        if revision not in ("main", COMMIT):
            return self._refuse(404, "RevisionNotFound")
        if kind == "revision":
            files = [{"rfilename": str(file.relative_to(folder))} for file in _files(folder)]
            gated = "manual" if api["repo"] in self.server_of_files.gated else False
            return self._send_json(
                {"id": api["repo"], "sha": COMMIT, "siblings": files, "private": False, "gated": gated}
            )
        if kind == "tree":
            below = folder / (api["path"] or "").strip("/")
            if not below.is_dir():
                return self._refuse(404, "EntryNotFound")
            entries = _files(below) if "recursive=true" in query.lower() else sorted(below.iterdir())
            return self._send_json([_entry(folder, each) for each in entries])
        asked = json.loads(body)["paths"] if body.startswith(b"{") else []
        return self._send_json([_entry(folder, folder / each) for each in asked if (folder / each).exists()])

    def _answer_file(self, asked: re.Match[str]) -> None:
        hub, folder = self.server_of_files, self.server_of_files.folder / asked["repo"]
        if not folder.is_dir():
            return self._refuse(401, "RepoNotFound")
        if asked["repo"] in hub.gated:
            return self._refuse(401, "GatedRepo")
        if asked["revision"] not in ("main", COMMIT):
            return self._refuse(404, "RevisionNotFound")
        file = folder / asked["path"]
        if not file.is_file():
            return self._refuse(404, "EntryNotFound", {"X-Repo-Commit": COMMIT})
        data = file.read_bytes()
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{_oid(file)}"', "Accept-Ranges": "bytes"}
        if (wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))) is None:
            return self._send(200, data, headers)
        first, last = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        return self._send(206, data[first : last + 1], headers)

    def _send_json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code, **(headers or {})})

    def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if status in (200, 206) and "/resolve/" in self.path:
            self.server_of_files.file_bytes += len(data)
        with suppress(ConnectionError):  # whoever asked has ended
            self.wfile.write(data)


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _oid(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


def _entry(folder: Path, path: Path) -> dict[str, Any]:
    name = str(path.relative_to(folder))
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": "0" * 40, "size": 0}
    return {"type": "file", "path": name, "oid": _oid(path), "size": path.stat().st_size}
