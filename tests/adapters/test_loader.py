"""Every adapter that PEFT writes means the same to CaraServe: its change of each weight is PEFT's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from caraserve_cli.adapters.library import AdapterLibrary
from caraserve_cli.adapters.loader import load_adapter
from caraserve_cli.adapters.peft_weights import module_path
from caraserve_cli.adapters.weight_file import BIN_NAME, SAFETENSORS_NAME
from caraserve_cli.adapters.weights import AdapterWeights
from caraserve_cli.errors import AdapterError
from tests.adapters.bases import FAMILIES, shape_of, tiny_llama
from tests.adapters.contents import content_of
from tests.adapters.peft_variants import VARIANTS, Variant, lora_layers, write_variant

SHAPE = shape_of(tiny_llama())


def assert_same_as_peft(weights: AdapterWeights, peft_model: PeftModel, adapter: str = "default") -> None:
    """Compares every module's change of weight and bias with PEFT's."""
    layers = dict(lora_layers(peft_model))
    assert {module_path(key) for key in weights.pairs} == layers.keys()
    for key, pair in weights.pairs.items():
        layer = layers[module_path(key)]
        delta = layer.get_delta_weight(adapter).float()
        assert delta.abs().max() > 0.05
        torch.testing.assert_close(pair.b_rows.t() @ pair.a, delta, atol=1e-5, rtol=1e-5)
        bias = layer.lora_B[adapter].bias
        if bias is None:
            assert pair.bias is None
        else:
            torch.testing.assert_close(pair.bias, bias * layer.scaling[adapter])
        assert pair.lora_rank == layer.r[adapter]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
@pytest.mark.parametrize("family", FAMILIES)
def test_change_of_each_weight_is_pefts(family: str, variant: Variant, tmp_path: Path) -> None:
    write_variant(tmp_path, variant, FAMILIES[family], seed=7)
    base = FAMILIES[family]()
    folder = AdapterLibrary.scan([tmp_path]).path(variant.name)
    weights = load_adapter(variant.name, folder, shape_of(base), torch.float32)
    # PEFT reads the file as well, so that float16 files and non-default names take its own road.
    assert_same_as_peft(weights, PeftModel.from_pretrained(base, str(folder)))


@pytest.mark.parametrize("init", [True, False, "gaussian", "orthogonal", "mica"])
def test_initialisations_that_leave_the_base_alone(init: bool | str, tmp_path: Path) -> None:
    config = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "init_lora_weights": init}
    write_variant(tmp_path, Variant("init", config), tiny_llama, seed=3)
    weights = load_adapter("init", tmp_path / "init", SHAPE, torch.float32)
    assert_same_as_peft(weights, PeftModel.from_pretrained(tiny_llama(), str(tmp_path / "init")))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]}
    write_variant(tmp_path, Variant("base", config), tiny_llama, seed=11)
    return tmp_path / "base"


def rewrite(folder: Path, old: str, new: str) -> None:
    """Renames the tensors of an adapter."""
    file = folder / SAFETENSORS_NAME
    save_file({name.replace(old, new): tensor for name, tensor in load_file(file).items()}, file)


def test_runs_in_the_order_of_the_forward_pass(folder: Path) -> None:
    weights = load_adapter("a", folder, SHAPE, torch.float32)
    assert list(weights.pairs) == [(0, "q_proj"), (0, "down_proj"), (1, "q_proj"), (1, "down_proj")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rank_rows_are_contiguous_in_the_runs_dtype(folder: Path, dtype: torch.dtype) -> None:
    weights = load_adapter("a", folder, SHAPE, dtype)
    pair = weights.pairs[0, "down_proj"]
    assert (pair.a.shape, pair.b_rows.shape) == ((4, 48), (4, 32))
    for tensor in (pair.a, pair.b_rows):
        assert tensor.is_contiguous()
        assert tensor.dtype == dtype


def test_scale_is_folded_before_the_cast(folder: Path) -> None:
    """Casting B first and scaling then would round twice."""
    stored = load_file(folder / SAFETENSORS_NAME)[
        "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    ]
    pair = load_adapter("a", folder, SHAPE, torch.bfloat16).pairs[0, "q_proj"]
    assert torch.equal(pair.b_rows, (stored.t() * 2.0).to(torch.bfloat16))


@pytest.mark.parametrize(
    ("old", "new"),
    [("base_model.model.", ""), (".weight", ".mine.weight"), ("base_model.model.model.", "model.")],
)
def test_other_spellings_of_the_names(folder: Path, old: str, new: str) -> None:
    """Without PEFT's prefix, and with the adapter's name still in."""
    expected = load_adapter("a", folder, SHAPE, torch.float32)
    rewrite(folder, old, new)
    assert content_of(load_adapter("a", folder, SHAPE, torch.float32)) == content_of(expected)


def test_two_adapters_in_one_file_are_refused(folder: Path) -> None:
    rewrite(folder, "layers.1.self_attn.q_proj.lora_A.weight", "layers.1.self_attn.q_proj.lora_A.mine.weight")
    with pytest.raises(AdapterError, match="belongs to another adapter"):
        load_adapter("a", folder, SHAPE, torch.float32)


def test_weights_do_not_depend_on_the_file_any_more(folder: Path) -> None:
    weights = load_adapter("a", folder, SHAPE, torch.float32)
    before = {key: pair.a.clone() for key, pair in weights.pairs.items()}
    with (folder / SAFETENSORS_NAME).open("r+b") as file:
        size = file.seek(0, 2)
        file.seek(0)
        file.write(b"\xff" * size)
    assert all(torch.equal(pair.a, before[key]) for key, pair in weights.pairs.items())


def test_bin_of_old_torch_is_read(folder: Path) -> None:
    expected = load_adapter("a", folder, SHAPE, torch.float32)
    tensors = load_file(folder / SAFETENSORS_NAME)
    (folder / SAFETENSORS_NAME).unlink()
    torch.save(tensors, folder / BIN_NAME, _use_new_zipfile_serialization=False)
    assert content_of(load_adapter("a", folder, SHAPE, torch.float32)) == content_of(expected)


def test_weights_too_large_for_float16_are_refused(folder: Path) -> None:
    file = folder / SAFETENSORS_NAME
    tensors = load_file(file)
    name = next(name for name in tensors if "lora_A" in name)
    tensors[name][0, 0] = 1e5
    save_file(tensors, file)
    with pytest.raises(AdapterError, match=r"lora_A.weight' does not fit float16; choose another --dtype"):
        load_adapter("a", folder, SHAPE, torch.float16)
    load_adapter("a", folder, SHAPE, torch.bfloat16)
