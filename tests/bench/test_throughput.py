"""A whole throughput benchmark, tiny: the real engine on the CPU, through the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from caraserve_cli.bench.floor import DeviceSpeed
from tests.bench.throughput_recipes import RANK_5_BYTES, SMALL_POOL, TINY, write_throughput
from tests.cli.command import assert_refused
from tests.cli.conftest import Caraserve, caraserve

__all__ = ["caraserve"]


@pytest.fixture(autouse=True)
def quick_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device of known speed, whose measuring (test_floor.py) takes longer than these benchmarks."""
    speed = DeviceSpeed(bytes_per_s=1e9, flops_per_s=1e9)
    monkeypatch.setattr("caraserve_cli.bench.engine_runs.measure_speed", lambda *_: speed)


def test_cases_are_interleaved_on_a_replica_and_all_work_is_done(
    caraserve: Caraserve, tmp_path: Path
) -> None:
    result_file = tmp_path / "result.json"
    ended = caraserve("bench", write_throughput(tmp_path, TINY + SMALL_POOL), "--json", result_file)
    assert ended.returncode == 0, ended.stderr
    assert [line.split(":")[0] for line in ended.stderr.splitlines()] == [
        *[
            f"{turn}  {case}"
            for turn in ("warm-up", "repeat 1/2", "repeat 2/2")
            for case in ("base", "adapters", "cold")
        ],
        *[f"{turn}  small pool" for turn in ("warm-up", "repeat 1/2", "repeat 2/2")],
    ]
    result = json.loads(result_file.read_text())
    assert (result["kind"], result["verdict"], result["weights"]) == ("throughput", "met", "random")
    assert (result["prompt_tokens"], result["output_tokens"], result["num_adapters"]) == (6, 4, 2)
    assert result["startup_s"] > 0
    cases = {case["name"]: case for case in result["cases"]}
    assert list(cases) == ["base", "adapters", "cold", "small pool"]
    for case in cases.values():
        assert case["undone"] == []
        assert len(case["tokens_per_s"]["values"]) == 2
        # 3 requests of 4 tokens.
        products = [
            a * b for a, b in zip(case["tokens_per_s"]["values"], case["seconds"]["values"], strict=True)
        ]
        assert products == pytest.approx([12, 12])
        assert case["of_floor"] == pytest.approx(case["tokens_per_s"]["median"] / case["floor_tokens_per_s"])
        assert case["decode_step_ms"]["median"] > 0
    assert {name: case["num_adapter_loads"] for name, case in cases.items()} == {
        "base": [0, 0],
        "adapters": [0, 0],
        "cold": [2, 2],
        # Rank 2, then rank 5 in its place, then nothing: the third request has rank 2, and joins the first.
        "small pool": [2, 2],
    }
    peaks = {name: case["peak_running"] for name, case in cases.items()}
    assert peaks == {"base": [3, 3], "adapters": [3, 3], "cold": [3, 3], "small pool": [2, 2]}
    assert cases["small pool"]["adapter_pool_bytes"] == RANK_5_BYTES + 256
    # Adapters are work, so the floor is lower with them.
    assert cases["adapters"]["floor_tokens_per_s"] == cases["cold"]["floor_tokens_per_s"]
    assert cases["adapters"]["floor_tokens_per_s"] < cases["base"]["floor_tokens_per_s"]


# The same two adapters as in the others, padded.
PADDED = """
[[case]]
name = "padded"
requests = 3
adapters = 2
lora_ranks = [2, 5]
modules = ["q_proj", "v_proj"]
lora_kernel = "bgmv"
"""


@pytest.fixture
def like_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters are copied, for the kernels' plain references."""
    monkeypatch.setattr("caraserve_cli.bench.engine_runs.copies_adapters", lambda _: True)
    monkeypatch.setattr("caraserve_cli.fleet.surroundings.copies_adapters", lambda _: True)


@pytest.mark.usefixtures("like_gpu")
def test_each_lora_kernel_has_its_own_replica_and_adapters(caraserve: Caraserve, tmp_path: Path) -> None:
    result_file = tmp_path / "result.json"
    text = TINY.replace('kv_memory = "4MB"', 'kv_memory = "4MB"\nmax_running = 4\nmax_batch_tokens = 32')
    ended = caraserve("bench", write_throughput(tmp_path, text + PADDED), "--json", result_file)
    assert ended.returncode == 0, ended.stderr
    result = json.loads(result_file.read_text())
    assert result["num_adapters"] == 4, "the same two in two forms"
    cases = {case["name"]: case for case in result["cases"]}
    assert cases["padded"]["options"]["lora_kernel"] == "bgmv"
    assert cases["padded"]["undone"] == cases["adapters"]["undone"] == []
    assert cases["padded"]["num_adapter_loads"] == [0, 0]


@pytest.mark.usefixtures("like_gpu")
def test_adapters_of_all_lora_kernels_share_the_host_memory(caraserve: Caraserve, tmp_path: Path) -> None:
    """Unpadded they take 7 ranks, padded 10, and there is room for 16."""
    text = TINY.replace('"1MB"', f'"{16 * RANK_5_BYTES // 5}B"')
    text = text.replace('kv_memory = "4MB"', 'kv_memory = "4MB"\nmax_running = 4\nmax_batch_tokens = 32')
    ended = caraserve("bench", write_throughput(tmp_path, text + PADDED))
    assert_refused(ended, 2, "'host_adapter_memory': the adapters of all cases take more than")


def test_a_missed_requirement(caraserve: Caraserve, tmp_path: Path) -> None:
    recipe = write_throughput(tmp_path, TINY.replace("at_least = 1e-6", "at_least = 1e12"))
    ended = caraserve("bench", recipe)
    assert ended.returncode == 4
    assert "Missed: 'base' gives" in ended.stdout


def test_work_that_cannot_be_done(caraserve: Caraserve, tmp_path: Path) -> None:
    """The larger adapter does not fit the pool at all, so that its request fails, and quickly."""
    small = SMALL_POOL.replace(f"{RANK_5_BYTES + 256}B", f"{RANK_5_BYTES - 256}B")
    result_file = tmp_path / "result.json"
    ended = caraserve("bench", write_throughput(tmp_path, TINY + small), "--json", result_file)
    assert ended.returncode == 5
    assert "Cannot tell: in 'small pool' 1 of 3 requests failed, the first because adapter" in ended.stdout
    result = json.loads(result_file.read_text())
    assert [case["verdict"] for case in result["cases"]] == ["met", "met", "met", "cannot-tell"]
    assert result["verdict"] == "cannot-tell"


def test_a_gpu_that_is_not_there(caraserve: Caraserve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    ended = caraserve("bench", "throughput")
    assert_refused(ended, 2, "recipe 'throughput'", 'device = "cuda"', "torch sees no CUDA device")


RECIPE_WORDS = (
    "recipe 'mine', case 'base': 'lora_kernel': 'bgmv' pads adapters in a GPU's memory, and the base runs on "
    'the CPU; leave it out, or use device = "cuda"'
)


@pytest.mark.parametrize(
    ("old", "new", "fragment"),
    [
        ("prompt_tokens = 6", "prompt_tokens = 509", "'prompt_tokens' and 'output_tokens' are 513 together"),
        (
            'host_adapter_memory = "1MB"',
            'host_adapter_memory = "140KB"',
            "'host_adapter_memory': the adapters",
        ),
        ('dtype = "float32"', 'dtype = "float32"\nlora_kernel = "bgmv"', RECIPE_WORDS),
        (
            "repeats = 2",
            "repeats = 2\nmax_batch_tokens = 64",
            "recipe 'mine', case 'base': 'max_batch_tokens': 64 is less than 'max_running' 256; every",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(
    caraserve: Caraserve, tmp_path: Path, old: str, new: str, fragment: str
) -> None:
    assert old in TINY
    assert_refused(caraserve("bench", write_throughput(tmp_path, TINY.replace(old, new))), 2, fragment)
