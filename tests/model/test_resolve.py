"""Resolving a base: folders and short names for real, the hub as a local server that speaks its protocol."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from caraserve_cli.errors import BaseModelError
from caraserve_cli.model.resolve import resolve_base
from tests.model.tiny import write_checkpoint

# Prints a line for each base; a process of its own, as the hub's address is read only once in one.
RESOLVE = """
import sys
from caraserve_cli.errors import BaseModelError
from caraserve_cli.model.resolve import resolve_base
for base in sys.argv[1:]:
    try:
        print("found", resolve_base(base, "checkpoint").folder)
    except BaseModelError as error:
        print(error)
"""


def refusal(base: str) -> str:
    with pytest.raises(BaseModelError) as caught:
        resolve_base(base, "checkpoint")
    return str(caught.value)


def test_a_local_folder_wins_over_a_short_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path / "llama2-7b")
    monkeypatch.chdir(tmp_path)
    resolved = resolve_base("llama2-7b", "random")
    assert resolved.folder == Path("llama2-7b")
    assert resolved.config.shape.hidden_size == 32


def test_a_short_name_with_random_weights_needs_no_files() -> None:
    resolved = resolve_base("Qwen2.5-7B", "random")
    assert (resolved.folder, resolved.name) == (None, "Qwen2.5-7B")
    assert resolved.config.shape.hidden_size == 3584


@pytest.mark.parametrize("base", ["./models/llama", "/no/such/folder", "~/no-such-llama", "a/b/c", "models/"])
def test_a_path_that_does_not_exist_is_a_missing_folder(base: str) -> None:
    assert refusal(base) == f"base model folder '{base}' does not exist; check the path"


def test_a_file_is_no_base(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.touch()
    assert "is a file" in refusal(str(path))


def test_a_misspelt_short_name_gets_a_suggestion() -> None:
    assert "did you mean llama2-7b" in refusal("lama2-7b")
    assert "the short names are llama2-7b" in refusal("zzz")


def test_an_impossible_hub_id_is_refused() -> None:
    assert "is no valid hub id" in refusal("owner/bad--name")


def resolve_each(bases: list[str], cache: Path, **environment: str) -> list[str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    done = subprocess.run(
        [sys.executable, "-c", RESOLVE, *bases],
        env={**inherited, "HF_HOME": str(cache), "NO_PROXY": "*", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == len(bases)
    return lines


@contextmanager
def hub(answers: dict[str, tuple[int, dict[str, str], bytes]]) -> Iterator[str]:
    """A hub: path -> status, headers, body. Any other path is a repository that does not exist."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            missing = (401, {"X-Error-Code": "RepoNotFound"}, b"{}")
            status, headers, body = answers.get(self.path.split("?")[0], missing)
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815 - the name that http.server calls

        def log_message(self, *arguments: object) -> None:
            """Keeps the test's output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_what_a_hub_refuses_is_told_with_the_way_out(tmp_path: Path) -> None:
    answers: dict[str, tuple[int, dict[str, str], bytes]] = {
        "/api/models/owner/gated/revision/main": (403, {"X-Error-Code": "GatedRepo"}, b"{}"),
        "/api/models/owner/down/revision/main": (500, {}, b"{}"),
    }
    with hub(answers) as address:
        said = resolve_each(["owner/gated", "owner/none", "owner/down"], tmp_path, HF_ENDPOINT=address)
    gated, unknown, down = said
    assert "'owner/gated' is gated" in gated
    assert "HF_TOKEN" in gated
    assert "'owner/none' is neither a folder here nor on the hub" in unknown
    assert "500" in down


def test_offline_only_a_cached_copy_is_found(tmp_path: Path) -> None:
    commit = "0123456789012345678901234567890123456789"
    repository = tmp_path / "hub" / "models--owner--cached"
    write_checkpoint(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    cached, missing = resolve_each(["owner/cached", "owner/missing"], tmp_path, HF_HUB_OFFLINE="1")
    assert cached == f"found {repository / 'snapshots' / commit}"
    assert "is not in the local cache" in missing
    assert "HF_HUB_OFFLINE" in missing


def test_an_unreachable_hub_gives_no_answer(tmp_path: Path) -> None:
    (said,) = resolve_each(["owner/name"], tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert "the hub gives no answer" in said
