"""A whole benchmark of operators, tiny: the plain operators on the CPU, through the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from caraserve_cli.bench.floor import DeviceSpeed
from caraserve_cli.bench.kernel_cases import Phase
from caraserve_cli.bench.kernel_recipe import KernelRecipe
from caraserve_cli.bench.kernels import most_tokens
from caraserve_cli.bench.recipe_kinds import load_any_recipe
from tests.bench.kernel_recipes import HEAD, TINY, write_kernels
from tests.cli.command import assert_refused
from tests.cli.conftest import Caraserve, caraserve

__all__ = ["caraserve"]

PEFT_BASIS = "called layer by layer, the host's part included; one layer's time, 6 times"
PRODUCTS = HEAD + "[[products]]\ntokens = 1\n"


@pytest.fixture(autouse=True)
def quick_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device of known speed: 1 GB and 1 TFLOP in a second."""
    speed = DeviceSpeed(bytes_per_s=1e9, flops_per_s=1e12)
    monkeypatch.setattr("caraserve_cli.bench.kernels.measure_speed", lambda *_: speed)


def test_every_section_is_measured(caraserve: Caraserve, tmp_path: Path) -> None:
    result_file = tmp_path / "result.json"
    ended = caraserve("bench", write_kernels(tmp_path), "--json", result_file)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "All work was done and every requirement is met." in ended.stdout
    told = [line.split(":")[0].partition("  ")[2] for line in ended.stderr.splitlines()]
    assert told == [
        "products, 3 tokens",
        "products, 1 token",
        "attention, decode, 3 x 21",
        "attention, prefill, 2 x 17",
        "lora, decode",
        "lora, prefill",
        "forms, mixed",
        "fit, batches to 3, ranks to 6, 2 layers",
        "loads, rank 5",
    ]
    result = json.loads(result_file.read_text())
    assert (result["kind"], result["verdict"], result["most_repeats"]) == ("kernels", "met", 2)
    for section in ("products", "attention", "lora"):
        for case in result[section]:
            assert case["wrong"] is None
            assert (len(case["time_us"]["values"]), case["repeats"]) == (2, 2)
            assert case["time_us"]["median"] > 0
            (peer,) = case["peers"]
            assert peer["basis"] == ("as ours" if section != "lora" else PEFT_BASIS)
            if section != "lora" or peer["problem"] is None:
                assert (peer["problem"], peer["repeats"]) == (None, 2)
            else:  # a difference, which on a busy machine may be lost
                assert "not told apart from noise" in peer["problem"]
    told = ended.stdout.splitlines()
    assert f"PEFT: {PEFT_BASIS}, 2 repeats" in told or "not told apart from noise" in ended.stdout
    # The sample's layer: q, k, v of 256 + 2 · 128 rows, o, gate and up of 640 each, and down.
    weights = 256 * 512 + 256 * 256 + 256 * 1280 + 640 * 256
    assert result["products"][1]["floor_us"] == pytest.approx(4 * weights / 1e9 * 1e6)
    # 3 requests of 21 tokens, 4 kv heads of 32, keys and values.
    assert result["attention"][0]["floor_us"] == pytest.approx(3 * 21 * 4 * 32 * 2 * 4 / 1e9 * 1e6)
    # Ranks 2 and 5 on q, v and down of 6 layers.
    widths = (256 + 256) + (256 + 128) + (640 + 256)
    assert result["lora"][0]["floor_us"] == pytest.approx(6 * 7 * widths * 4 / 1e9 * 1e6)
    # Ranks 2 and 6 in batches of 1 and 3: all equal, and of the larger one two more mixes.
    (fitted,) = result["fit"]
    assert [(p["mix"], p["batch_size"], p["largest_rank"], p["sum_of_ranks"]) for p in fitted["points"]] == [
        ("all equal", 1, 2, 2),
        ("all equal", 3, 2, 6),
        ("all equal", 1, 6, 6),
        ("all equal", 3, 6, 18),
        ("one largest", 1, 6, 6),
        ("one largest", 3, 6, 10),
        ("cycle", 1, 6, 6),
        ("cycle", 3, 6, 14),
    ]
    assert result["loads"][0]["adapter_bytes"] == 6 * 5 * widths * 4


def test_a_missed_requirement(caraserve: Caraserve, tmp_path: Path) -> None:
    ended = caraserve("bench", write_kernels(tmp_path, PRODUCTS + "at_most_us = 1e-9\n"))
    assert ended.returncode == 4
    assert "Missed: products, '1 token': takes" in ended.stdout


def test_a_wrong_operator_posts_no_time(
    caraserve: Caraserve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of every product is missing: a quick way to be quick."""
    monkeypatch.setattr(
        "caraserve_cli.bench.kernel_products.linear", lambda x, weight: x[:, ::2] @ weight[:, ::2].T
    )
    ended = caraserve("bench", write_kernels(tmp_path, PRODUCTS + "at_most_us = 1e9\n"))
    assert ended.returncode == 5
    assert "Cannot tell: products, '1 token' differs from its float32 reference by" in ended.stdout


def test_a_peer_that_fails_is_named_and_ours_is_measured(
    caraserve: Caraserve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise RuntimeError("no kernel image\nis available")

    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", fail)
    text = HEAD + "[[attention]]\nrequests = 1\ncontext_tokens = 5\n"
    ended = caraserve("bench", write_kernels(tmp_path, text))
    assert ended.returncode == 0
    problem = "No time of torch SDPA in 'decode, 1 x 5': RuntimeError: no kernel image"
    assert problem in ended.stdout.splitlines()


def test_a_gpu_that_is_not_there(caraserve: Caraserve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    ended = caraserve("bench", "kernels")
    assert_refused(ended, 2, "recipe 'kernels'", 'device = "cuda"', "torch sees no CUDA device")


def test_ranks_that_no_gpu_serves(caraserve: Caraserve, tmp_path: Path) -> None:
    text = HEAD + 'modules = ["q_proj"]\n[[loads]]\nlora_rank = 513\n'
    assert_refused(caraserve("bench", write_kernels(tmp_path, text)), 2, "rank 513", "up to 512")


def test_steps_of_a_phase_share_their_buffers_sizes(tmp_path: Path) -> None:
    recipe = load_any_recipe(write_kernels(tmp_path, TINY))
    assert isinstance(recipe, KernelRecipe)
    assert most_tokens(recipe, Phase.DECODE) == 4
    assert most_tokens(recipe, Phase.PREFILL) == 6
