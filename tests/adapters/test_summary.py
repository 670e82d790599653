"""Summaries tell what the headers tell, of good adapters and of bad ones."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from caraserve_cli.adapters.summary import AdapterInspector, AdapterSummary, inspect_adapter
from tests.adapters.bad_adapters import edit_config
from tests.adapters.bases import shape_of, tiny_llama
from tests.adapters.peft_variants import VARIANTS, Variant, write_variant

SHAPE = shape_of(tiny_llama())
BY_NAME = {variant.name: variant for variant in VARIANTS}


def test_of_mixed_ranks(tmp_path: Path) -> None:
    write_variant(tmp_path, BY_NAME["both-patterns"], tiny_llama, seed=2)
    folder = tmp_path / "both-patterns"
    assert inspect_adapter("a", folder, SHAPE) == AdapterSummary(
        name="a",
        folder=folder,
        lora_ranks=(3, 24),
        lora_alpha=16,
        lora_alphas=(1, 16),
        modules=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        dtypes=("float32",),
        file_bytes=(folder / "adapter_model.safetensors").stat().st_size,
    )


def test_of_a_bin_file(tmp_path: Path) -> None:
    write_variant(tmp_path, BY_NAME["bin-bfloat16"], tiny_llama, seed=2)
    folder = tmp_path / "bin-bfloat16"
    assert inspect_adapter("a", folder, SHAPE) == AdapterSummary(
        name="a",
        folder=folder,
        lora_ranks=(4, 4),
        lora_alpha=8,
        lora_alphas=(8, 8),
        modules=("q_proj", "k_proj", "v_proj", "o_proj"),
        dtypes=("bfloat16",),
        file_bytes=(folder / "adapter_model.bin").stat().st_size,
    )


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_every_variant_has_no_problem(variant: Variant, tmp_path: Path) -> None:
    """With a base and without one."""
    write_variant(tmp_path, variant, tiny_llama, seed=2)
    for shape in (SHAPE, None):
        assert inspect_adapter("a", tmp_path / variant.name, shape).problem is None


def test_a_base_of_another_size_is_a_problem(tmp_path: Path) -> None:
    write_variant(tmp_path, VARIANTS[0], tiny_llama, seed=2)
    folder = tmp_path / VARIANTS[0].name
    assert "does not fit the base" in str(
        inspect_adapter("a", folder, replace(SHAPE, hidden_size=64)).problem
    )
    assert "has 1 layers" in str(inspect_adapter("a", folder, replace(SHAPE, num_layers=1)).problem)
    # More layers than the adapter was trained on: the config selects modules that have no tensors.
    assert "layers.2.self_attn.q_proj" in str(
        inspect_adapter("a", folder, replace(SHAPE, num_layers=3)).problem
    )


def test_a_refused_config_still_shows_the_headers(tmp_path: Path) -> None:
    write_variant(tmp_path, VARIANTS[0], tiny_llama, seed=2)
    folder = tmp_path / VARIANTS[0].name
    edit_config(folder, {"use_dora": True})
    summary = inspect_adapter("a", folder, SHAPE)
    assert "use_dora" in str(summary.problem)
    assert (summary.lora_ranks, summary.modules) == ((4, 4), ("q_proj", "v_proj"))


def test_an_empty_folder(tmp_path: Path) -> None:
    summary = inspect_adapter("a", tmp_path, SHAPE)
    assert summary == AdapterSummary(name="a", folder=tmp_path, problem=summary.problem)
    assert "adapter_config.json cannot be read" in str(summary.problem)


def test_of_many_each_is_as_if_it_were_alone(tmp_path: Path) -> None:
    """Adapters of the same form, and others with another config, another header, a cut file."""
    write_variant(tmp_path, VARIANTS[0], tiny_llama, seed=2)
    original = tmp_path / VARIANTS[0].name
    for name in ("alike", "alpha", "rank", "cut", "dora"):
        shutil.copytree(original, tmp_path / name)
    edit_config(tmp_path / "alpha", {"lora_alpha": 99})
    edit_config(tmp_path / "rank", {"r": 5})
    edit_config(tmp_path / "dora", {"use_dora": True})
    weights = tmp_path / "cut" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    inspector = AdapterInspector(SHAPE)
    found = {name: inspector.inspect(name, tmp_path / name) for name in sorted(os.listdir(tmp_path))}
    assert found == {name: inspect_adapter(name, tmp_path / name, SHAPE) for name in found}
    good = [name for name, summary in found.items() if summary.problem is None]
    assert good == sorted(["alike", "alpha", original.name])
    assert found["alpha"].lora_alpha == 99
