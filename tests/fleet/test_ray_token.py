"""A cluster of our own has a token that nobody else is left with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.command import ROOT, user_environment

# Opens a cluster of its own, in which a task runs, and says what a process without its token is told.
DRIVER = """
import os, subprocess, sys
from caraserve_cli.fleet.ray_cluster import RayCluster

before = {name: value for name, value in os.environ.items() if name.startswith("RAY_AUTH")}
with RayCluster(None, 1):
    import ray
    address = ray.get_runtime_context().gcs_address
    assert ray.get(ray.remote(lambda: 7).remote()) == 7
    stranger = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    code = "import sys; from caraserve_cli.fleet.ray_address import check_address; check_address(sys.argv[1])"
    told = subprocess.run([sys.executable, "-c", code, address], env=stranger, capture_output=True, text=True)
    print(told.stderr.splitlines()[-1])
    print(len(subprocess.run([sys.executable, "-c", code, address], capture_output=True, text=True).stderr))
assert {name: value for name, value in os.environ.items() if name.startswith("RAY_AUTH")} == before
"""


def test_two_at_once_in_a_new_home(tmp_path: Path) -> None:
    """Ray would leave a token there, the one or the other's."""
    pytest.importorskip("ray")
    environment = user_environment() | {"HOME": str(tmp_path)}
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", DRIVER],
            env={name: value for name, value in environment.items() if not name.startswith("RAY_AUTH")},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for run in runs:
        stdout, stderr = run.communicate(timeout=150)
        assert run.returncode == 0, stderr
        stranger, friend = stdout.splitlines()
        assert "asks for a token; set RAY_AUTH_MODE=token" in stranger
        assert friend == "0"
    assert not (tmp_path / ".ray").exists()
