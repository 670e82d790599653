"""Adapters that must be refused, each with the part of the message that names what is wrong.

Those that PEFT can write, PEFT writes; the others are a good one, damaged in one place. The good one is of
rank 4 on q_proj and v_proj of every layer.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from caraserve_cli.adapters.peft_config import CONFIG_NAME
from caraserve_cli.adapters.weight_file import BIN_NAME, SAFETENSORS_NAME
from tests.adapters.peft_variants import ModelFactory, Variant, write_variant

Tensors = dict[str, torch.Tensor]

_FIRST_A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
_FIRST_B = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
_LAST_B = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"
_TARGETS = {"target_modules": ["q_proj", "v_proj"]}

# What PEFT is asked for, and the part of the message.
WRITTEN_BY_PEFT: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "dora": ({**_TARGETS, "use_dora": True}, "use_dora is true"),
    "modules-to-save": ({**_TARGETS, "modules_to_save": ["lm_head"]}, "modules_to_save is ['lm_head']"),
    "embedding": ({"target_modules": ["q_proj", "embed_tokens"]}, "selects 'model.embed_tokens'"),
    "lm-head": ({"target_modules": ["q_proj", "lm_head"]}, "selects 'lm_head'"),
    "bias-all": ({**_TARGETS, "bias": "all"}, "bias is 'all'"),
    "bias-lora-only": ({**_TARGETS, "bias": "lora_only"}, "bias is 'lora_only'"),
    "token-indices": ({**_TARGETS, "trainable_token_indices": [1, 2]}, "trainable_token_indices is"),
    "layer-replication": ({**_TARGETS, "layer_replication": [[0, 2], [0, 2]]}, "layer_replication is"),
    "pissa": ({**_TARGETS, "init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
    "pissa-niter": (
        {**_TARGETS, "init_lora_weights": "pissa_niter_2"},
        "init_lora_weights is 'pissa_niter_2'",
    ),
    "olora": ({**_TARGETS, "init_lora_weights": "olora"}, "init_lora_weights is 'olora'"),
    "alora": ({**_TARGETS, "alora_invocation_tokens": [5]}, "alora_invocation_tokens is [5]"),
}

# Fields of a good config that are replaced, and the part of the message.
EDITED_CONFIGS: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "not-lora": ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    "classifier": ({"task_type": "SEQ_CLS"}, "task_type is 'SEQ_CLS'"),
    "unknown-field": ({"use_warp_drive": 9}, "does not know the field use_warp_drive"),
    "fan-in-fan-out": ({"fan_in_fan_out": True}, "fan_in_fan_out is true"),
    "qalora": ({"use_qalora": True}, "use_qalora is true"),
    "kasa": ({"kasa_config": {"beta": 1}}, "kasa_config is"),
    "kasa of defaults": ({"kasa_config": {}}, "kasa_config is"),
    "arrow": ({"arrow_config": {"top_k": 3}}, "arrow_config is"),
    "target-parameters": ({"target_parameters": ["mlp.experts"]}, "target_parameters is"),
    "loftq": ({"init_lora_weights": "loftq"}, "init_lora_weights is 'loftq'"),
    "corda": ({"init_lora_weights": "corda"}, "init_lora_weights is 'corda'"),
    "lora-ga": ({"init_lora_weights": "lora_ga"}, "init_lora_weights is 'lora_ga'"),
    "unknown-init": ({"init_lora_weights": "sorcery"}, "init_lora_weights is 'sorcery'"),
    "rank-zero": ({"r": 0}, "r is 0"),
    "rank-as-text": ({"r": "4"}, "r is '4'"),
    "alpha-nan": ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
    "rank-pattern-list": ({"rank_pattern": ["q_proj"]}, "rank_pattern is ['q_proj']"),
    "broken-regex": ({"target_modules": "(q_proj"}, "target_modules holds '(q_proj'"),
    "broken-rank-regex": ({"rank_pattern": {"*": 4}}, "rank_pattern holds '*'"),
    "no-targets": ({"target_modules": None}, "target_modules is empty"),
    "layers-with-regex": (
        {"target_modules": r".*\.[qv]_proj", "layers_to_transform": [0, 1]},
        "layers_to_transform cannot be used",
    ),
    "pattern-without-layers": ({"layers_pattern": "layers"}, "layers_pattern is set without"),
    "rank-differs": ({"r": 8}, "is of rank 4, but r and rank_pattern give it 8"),
    "more-targets": ({"target_modules": ["q_proj", "v_proj", "o_proj"]}, "layers.0.self_attn.o_proj'"),
    "fewer-targets": ({"target_modules": ["q_proj"]}, "layers.0.self_attn.v_proj.lora_A.weight'"),
    "fewer-layers": ({"layers_to_transform": [0]}, "layers.1.self_attn.q_proj.lora_A.weight'"),
    "lora-bias-missing": ({"lora_bias": True}, "layers.0.self_attn.q_proj.lora_B.bias' is missing"),
}


def _set(name: str, tensor: torch.Tensor) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({name: tensor})


def _drop(name: str) -> Callable[[Tensors], object]:
    def edit(tensors: Tensors) -> None:
        del tensors[name]

    return edit


def _rename(old: str, new: str) -> Callable[[Tensors], object]:
    def edit(tensors: Tensors) -> None:
        tensors.update({name.replace(old, new): tensors.pop(name) for name in list(tensors) if old in name})

    return edit


def _fill(name: str, value: float) -> Callable[[Tensors], object]:
    def edit(tensors: Tensors) -> None:
        tensors[name][0, 0] = value

    return edit


def _cast(name: str, dtype: torch.dtype) -> Callable[[Tensors], object]:
    def edit(tensors: Tensors) -> None:
        tensors[name] = tensors[name].to(dtype)

    return edit


def _narrow(name: str) -> Callable[[Tensors], object]:
    def edit(tensors: Tensors) -> None:
        tensors[name] = tensors[name][:, :-1].contiguous()

    return edit


def _swap_halves(tensors: Tensors) -> None:
    tensors[_FIRST_A], tensors[_FIRST_B] = tensors[_FIRST_B], tensors[_FIRST_A]


_STRANGER = torch.zeros(4, 4)

# What is done to the tensors of a good adapter, and the part of the message.
EDITED_TENSORS: Mapping[str, tuple[Callable[[Tensors], object], str]] = {
    "no-tensors": (lambda tensors: tensors.clear(), "holds no LoRA tensors"),
    "a-missing": (_drop(_FIRST_A), "layers.0.self_attn.q_proj.lora_A.weight' is missing"),
    "of-a-shorter-base": (
        lambda tensors: [tensors.pop(name) for name in list(tensors) if "layers.1." in name],
        "was it trained for a base with 1 layers?",
    ),
    "b-missing": (_drop(_LAST_B), "layers.1.self_attn.v_proj.lora_B.weight' is missing"),
    "nan": (_fill(_FIRST_A, float("nan")), f"'{_FIRST_A}' holds NaN or infinite"),
    "infinite": (_fill(_LAST_B, float("inf")), f"'{_LAST_B}' holds NaN or infinite"),
    "int8": (_cast(_FIRST_A, torch.int8), f"'{_FIRST_A}' is int8"),
    "float64": (_cast(_FIRST_A, torch.float64), f"'{_FIRST_A}' is float64"),
    "narrow-a": (_narrow(_FIRST_A), f"'{_FIRST_A}' has shape"),
    "narrow-b": (_narrow(_LAST_B), f"'{_LAST_B}' is of rank 3, its lora_A of rank 4"),
    "swapped": (_swap_halves, "layers.0.self_attn.q_proj.lora_"),
    "flat": (_set(_FIRST_A, torch.zeros(4)), f"'{_FIRST_A}' has shape [4]"),
    "layer-outside": (_rename("layers.1.", "layers.99."), "layers.99.self_attn.q_proj.lora_A.weight'"),
    "module-unknown": (_rename("v_proj", "x_proj"), "x_proj.lora_A.weight' cannot be used: it matches no"),
    "other-architecture": (_rename("model.layers", "transformer.h"), "transformer.h.0.self_attn.q_proj"),
    "magnitude": (_set(_FIRST_A.replace("lora_A.weight", "lora_magnitude_vector"), _STRANGER), "DoRA"),
    "embedding-half": (_set("base_model.model.model.embed_tokens.lora_embedding_A", _STRANGER), "embeddings"),
    "full-weight": (
        _set("base_model.model.model.layers.0.mlp.up_proj.base_layer.weight", _STRANGER),
        "base_layer",
    ),
    "saved-head": (_set("base_model.model.lm_head.weight", _STRANGER), "'base_model.model.lm_head.weight'"),
    "extra-bias": (_set(_FIRST_B.replace("weight", "bias"), torch.zeros(4)), "but lora_bias is false"),
}


def write_bad_adapters(root: Path, model_factory: ModelFactory) -> dict[str, str]:
    """One folder below `root` for each way in which an adapter can be bad.

    Returns the part of the message that must be in the refusal, by the adapter's name.
    """
    expected: dict[str, str] = {}
    for name, (options, fragment) in WRITTEN_BY_PEFT.items():
        config = LoraConfig(task_type="CAUSAL_LM", r=4, **options)
        get_peft_model(model_factory(), config).save_pretrained(root / name)
        expected[name] = fragment
    good = _good(root.with_name(f"{root.name}-good"), model_factory)
    for name, (fields, fragment) in EDITED_CONFIGS.items():
        edit_config(shutil.copytree(good, root / name), fields)
        expected[name] = fragment
    for name, (edit, fragment) in EDITED_TENSORS.items():
        edit_tensors(shutil.copytree(good, root / name), edit)
        expected[name] = fragment
    return expected | _damaged_files(good, root)


def edit_config(folder: Path, fields: Mapping[str, Any]) -> None:
    """Replaces or adds fields of an adapter_config.json."""
    file = folder / CONFIG_NAME
    file.write_text(json.dumps(json.loads(file.read_text()) | dict(fields)))


def edit_tensors(folder: Path, edit: Callable[[Tensors], object]) -> None:
    """Changes the tensors of an adapter in place."""
    file = folder / SAFETENSORS_NAME
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file)


def _good(folder: Path, model_factory: ModelFactory) -> Path:
    config = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    write_variant(folder, Variant("good", config), model_factory, seed=5)
    return folder / "good"


def _damaged_files(good: Path, root: Path) -> dict[str, str]:
    weights = (good / SAFETENSORS_NAME).read_bytes()
    zipped = root / "zipped.bin"
    torch.save(load_file(good / SAFETENSORS_NAME), zipped)
    pickled = zipped.read_bytes()
    torch.save({"weights": object}, zipped)
    object_inside = zipped.read_bytes()
    torch.save([torch.zeros(1)], zipped)
    list_inside = zipped.read_bytes()
    torch.save({"epoch": 3}, zipped)
    number_inside = zipped.read_bytes()
    zipped.unlink()
    contents: dict[str, tuple[str | None, bytes, str]] = {
        "no-weights": (None, b"", "neither adapter_model.safetensors nor adapter_model.bin"),
        "empty": (SAFETENSORS_NAME, b"", "adapter_model.safetensors is damaged or cut short"),
        "cut-in-header": (
            SAFETENSORS_NAME,
            weights[:40],
            "adapter_model.safetensors is damaged or cut short",
        ),
        "cut-in-data": (SAFETENSORS_NAME, weights[:-10], "adapter_model.safetensors is damaged or cut short"),
        "cut-bin": (BIN_NAME, pickled[: len(pickled) // 2], "adapter_model.bin is damaged"),
        "empty-bin": (BIN_NAME, b"", "adapter_model.bin is damaged"),
        "noise-bin": (BIN_NAME, bytes(range(256)), "adapter_model.bin is damaged"),
        "code-bin": (BIN_NAME, object_inside, "holds more than tensors"),
        "list-bin": (BIN_NAME, list_inside, "adapter_model.bin holds a list"),
        "number-bin": (BIN_NAME, number_inside, "adapter_model.bin holds 'epoch', which is no tensor"),
    }
    for name, (file_name, content, _) in contents.items():
        folder = shutil.copytree(good, root / name)
        (folder / SAFETENSORS_NAME).unlink()
        if file_name is not None:
            (folder / file_name).write_bytes(content)
    configs = {
        "config-cut": b'{"r": 4, "peft_ty',
        "config-binary": b"\xff\xfe\x00\x01\x02",
        "config-list": b"[]",
        "config-deep": b"[" * 100_000,
    }
    for name, content in configs.items():
        (shutil.copytree(good, root / name) / CONFIG_NAME).write_bytes(content)
    return {name: fragment for name, (_, _, fragment) in contents.items()} | dict.fromkeys(
        configs, CONFIG_NAME
    )
