"""CPU workers measured beside a GPU: what only a GPU has is measured too, and every sum is right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.bench.assist_recipes import TINY, write_assist
from tests.cli.conftest import Caraserve, caraserve

__all__ = ["caraserve"]

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_graphs_and_synchronisation_are_measured(caraserve: Caraserve, tmp_path: Path, dtype: str) -> None:
    text = TINY.replace('device = "cpu"', 'device = "cuda"').replace('"float32"', f'"{dtype}"')
    result_file = tmp_path / "result.json"
    ended = caraserve("bench", write_assist(tmp_path, text), "--json", result_file)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "On a CPU" not in ended.stdout
    result = json.loads(result_file.read_text())
    for case in result["cases"]:
        assert case["wrong"] is None
        times_ms = ("sync_free_ms", "synchronised_ms", "saved_ms", "replayed_ms")
        for key in (*times_ms, "workers_us", "torch_us", "torch_alone_us"):
            assert len(case[key]["values"]) == 2
        assert case["trace"]["num_ops"] == 12
    events = json.loads((tmp_path / "result.trace.json").read_text())["traceEvents"]
    assert {event["ph"] for event in events} == {"M", "X"}
