"""`--ray`: replicas on the machines of a cluster that is there already, here processes of this one. It asks
for a token, as clusters of Ray 2.61 do unless told otherwise."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.command import SAMPLE, assert_refused, rows_by_id, run_caraserve
from tests.cli.forked import run_forked

ray_cluster_utils = pytest.importorskip("ray.cluster_utils")
ray_token = pytest.importorskip("caraserve_cli.fleet.ray_token")

JOB = ("run", "--base", SAMPLE / "base", "--adapters", SAMPLE / "adapters", "--dtype", "float32")
NUM_NODES = 2


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, ray_token.own_token():
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        cluster = ray_cluster_utils.Cluster(
            initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0, "include_dashboard": False}
        )
        for _ in range(NUM_NODES - 1):
            cluster.add_node(num_cpus=1, num_gpus=0)
        yield str(cluster.address)
        cluster.shutdown()


def test_a_replica_on_each_machine_and_the_same_answers(address: str, tmp_path: Path) -> None:
    ended = run_caraserve(
        *JOB, "--out", tmp_path / "cluster", "--ray", address, "--token-ids", SAMPLE / "requests.jsonl"
    )
    assert ended.returncode == 0, ended.stderr
    here = run_forked(*JOB, "--out", tmp_path / "here", "--token-ids", SAMPLE / "requests.jsonl")
    assert here.returncode == 0, here.stderr
    answers = [
        {name: row["token_ids"] for name, row in rows_by_id(tmp_path / where / "outputs.jsonl").items()}
        for where in ("cluster", "here")
    ]
    assert answers[0] == answers[1]
    fleet = json.loads((tmp_path / "cluster" / "report.json").read_bytes())["fleet"]
    assert len(fleet["replicas"]) == NUM_NODES
    assert all(replica["answered"] for replica in fleet["replicas"])
    assert fleet["clock_error_ms"] == 0.0, "one kernel has one clock"


def test_more_than_the_cluster_has_is_refused(address: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    more = ("--out", out, "--ray", address, SAMPLE / "requests.jsonl")
    assert_refused(run_forked(*JOB, "--replicas", "3", *more), 2, "--replicas", "3", "2 are free")
    assert_refused(run_forked(*JOB, "--device", "cuda", *more), 2, "--device", "the cluster has no GPU")
    assert not out.exists()


ASKED = "asks for a token; "


@pytest.mark.parametrize(
    ("cluster", "environment", "fragment"),
    [
        (None, {"RAY_AUTH_MODE": None}, ASKED + "set RAY_AUTH_MODE=token; Ray takes it from RAY_AUTH_TOKEN"),
        (None, {"RAY_AUTH_TOKEN": "a" * 64}, ASKED + "the one here is another"),
        (None, {"RAY_AUTH_TOKEN": None}, "RAY_AUTH_MODE is token, and there is none"),
        (None, {"RAY_AUTH_TOKEN": None, "RAY_AUTH_TOKEN_PATH": "/none"}, "is token, and there is none"),
        ("auto", {"RAY_AUTH_MODE": None, "RAY_AUTH_TOKEN": None}, ASKED + "set RAY_AUTH_MODE=token"),
        ("auto", {"RAY_AUTH_MODE": None, "RAY_AUTH_TOKEN": "a" * 64}, ASKED + "the one here is another"),
    ],
)
def test_who_has_not_its_token_is_told(
    address: str, cluster: str | None, environment: dict[str, str | None], fragment: str, tmp_path: Path
) -> None:
    """In one line: Ray would write twenty, for as many seconds, or abort."""
    home_and_where = {"HOME": str(tmp_path), "RAY_ADDRESS": address}
    before = f"""
import os
for name, value in {home_and_where | environment}.items():
    os.environ.pop(name, None) if value is None else os.environ.update({{name: value}})
"""
    arguments = (*JOB, "--out", tmp_path / "out", "--ray", cluster or address, SAMPLE / "requests.jsonl")
    assert_refused(run_forked(*arguments, before=before), 1, "--ray", fragment)
