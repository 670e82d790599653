"""Datasets of the Hub, from a real HTTP server on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from caraserve_cli.errors import InputError
from caraserve_cli.requests.dataset_path import check_dataset, dataset_name
from tests.cli.command import ROOT, SAMPLE, caraserve_command, rows_by_id, user_environment
from tests.requests.hub_server import COMMIT, HubServer

LINES = [{"id": f"l{n}", "prompt": f"x{n}"} for n in range(5)]


def make_dataset(folder: Path) -> None:
    """Two splits, of files of JSON lines."""
    for split, rows in (("train", LINES), ("test", LINES[:1])):
        path = folder / "data" / f"{split}-00000.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def variables_for(url: str, home: Path) -> dict[str, str]:
    return {**user_environment(), "HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}


def told(url: str, home: Path, *sources: str, cwd: Path = ROOT, **variables: str) -> list[object]:
    """See `read_from_hub`; all that stderr may hold is nothing."""
    environment = variables_for(url, home)
    command = [sys.executable, "-m", "tests.requests.read_from_hub", *sources]
    ended = subprocess.run(
        command,
        env={**environment, **variables},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    return [json.loads(line) for line in ended.stdout.splitlines()]


def test_rows_and_refusals(tmp_path: Path) -> None:
    make_dataset(tmp_path / "hub" / "team" / "lines")
    make_dataset(tmp_path / "hub" / "team" / "gated")
    # A folder of the same name is no dataset of the Hub.
    (tmp_path / "team" / "lines").mkdir(parents=True)
    (tmp_path / "team" / "lines" / "train.jsonl").write_text('{"id": "wrong", "prompt": "wrong"}\n')
    with HubServer(tmp_path / "hub", gated=["team/gated"]) as hub:
        train, named, pinned, no_split, split, revision, nothing, gated = told(
            hub.url,
            tmp_path / "home",
            "hf://team/lines?split=train",
            "hf://datasets/team/lines?split=train",
            f"hf://team/lines?split=test&revision={COMMIT}",
            "hf://team/lines",
            "hf://team/lines?split=validation",
            "hf://team/lines?split=test&revision=v9",
            "hf://team/nothing",
            "hf://team/gated?split=train",
            cwd=tmp_path,
            PYTHONPATH=user_environment()["PYTHONPATH"],
        )
    assert train == named == LINES
    assert pinned == LINES[:1]
    assert "has several splits; add ?split= with one of" in str(no_split)
    assert "has no split 'validation'; add ?split= with one of" in str(split)
    assert "Revision 'v9' doesn't exist" in str(revision)
    token = "a private or gated one needs a token: `hf auth login`, or the variable HF_TOKEN"
    assert "'team/nothing' doesn't exist on the Hub or cannot be accessed; " + token in str(nothing)
    assert "'team/gated' is a gated dataset" in str(gated)
    assert token in str(gated)


def test_without_network(tmp_path: Path) -> None:
    """A copy in the cache is taken when it is asked for, and never for a certain revision."""
    source, home = "hf://team/lines?split=train", tmp_path / "home"
    make_dataset(tmp_path / "hub" / "team" / "lines")
    with HubServer(tmp_path / "hub") as hub:
        download = "import datasets; datasets.load_dataset('team/lines')"
        environment = {
            **user_environment(),
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
        }
        subprocess.run([sys.executable, "-c", download], env=environment, capture_output=True, check=True)
    unknown, cached = told(hub.url, home, "hf://team/other", source)
    assert f"; check the network, and HF_ENDPOINT, which is {hub.url}" in str(unknown)
    assert "only the copy of an earlier download is there" in str(cached)
    copy, pinned = told(hub.url, home, source, source + "&revision=v9", HF_HUB_OFFLINE="1")
    assert copy == LINES
    assert "leave out revision=" in str(pinned)


def test_streamed_into_a_run(tmp_path: Path) -> None:
    """Not more of a large file than is wanted; and a run that leaves it in the middle ends."""
    folder = tmp_path / "hub" / "team" / "large"
    folder.mkdir(parents=True)
    # A thousand rows are taken at once, 5 MB, and some 20 MB were read ahead.
    rows = {
        "key": list(range(16_000)),
        "word": [f"w{n}" for n in range(16_000)],
        "team": ["upper"] * 16_000,
        "prompt": [os.urandom(2500).hex() for _ in range(16_000)],
    }
    parquet.write_table(pyarrow.table(rows), folder / "train.parquet", row_group_size=100)
    size = (folder / "train.parquet").stat().st_size
    job = ("run", "-q", "--base", SAMPLE / "base", "--adapters", SAMPLE / "adapters", "--max-tokens", "2")
    options = ("--map", "id=key,prompt=word,adapter=team", "--limit", "5", "--out", tmp_path / "out")
    with HubServer(tmp_path / "hub") as hub:
        ended = subprocess.run(
            caraserve_command(*job, *options, "hf://team/large"),
            env=variables_for(hub.url, tmp_path / "home"),
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    answers = rows_by_id(tmp_path / "out" / "outputs.jsonl")
    assert {name: row["adapter"] for name, row in answers.items()} == dict.fromkeys("01234", "upper")
    assert hub.file_bytes < size / 2, (hub.file_bytes, size)


def test_names() -> None:
    assert dataset_name("hf://team/lines.csv?split=test") == "lines.csv"
    assert dataset_name("hf://datasets/team/lines") == "lines"
    for wrong in (
        "hf://",
        "hf://a/b/data/train.parquet",
        "hf://datasets/a/b@main",
        "hf://a//b",
        "hf://a b/c",
    ):
        with pytest.raises(InputError, match="a dataset's name is OWNER/NAME"):
            check_dataset(wrong)
