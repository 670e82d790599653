"""A base model's config.json, checked key by key and interpreted as transformers interprets it.

Every key is honoured, is known to change no answer, or is refused by name. The defaults of each family and
the two spellings of rope settings are transformers' own: its config classes fill them in. This module does
not know weights, files other than the two configs, or where a checkpoint came from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from caraserve_cli.core import BaseShape
from caraserve_cli.errors import BaseModelError
from caraserve_cli.model.config_keys import check_keys, honoured_keys
from caraserve_cli.model.decoder_config import DecoderConfig
from caraserve_cli.model.generation_config import find_greedy_settings
from caraserve_cli.model.rope_config import RopeConfig, RopeValue, check_rope_settings

HfConfig: TypeAlias = LlamaConfig | MistralConfig | Qwen2Config | Qwen3Config

_HF_CONFIGS: dict[str, type[HfConfig]] = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
}
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_decoder_config(folder: Path) -> DecoderConfig:
    """Reads `folder`/config.json, and the EOS ids of `folder`/generation_config.json where there is one.

    Raises:
        BaseModelError: a file is missing or is not JSON, or holds something that cannot be honoured; the
            folder holds an adapter too.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise BaseModelError(f"{folder}: no config.json; give a folder with a Hugging Face checkpoint")
    if (folder / "adapter_config.json").is_file():
        raise BaseModelError(
            f"{folder}: holds an adapter_config.json too, whose adapter transformers would apply to the base "
            "that it names; move the base, or the adapter, to a folder of its own"
        )
    generation_path = folder / "generation_config.json"
    generation = _read_object(generation_path) if generation_path.is_file() else {}
    return parse_decoder_config(_read_object(path), where=str(path), generation=generation)


def parse_decoder_config(
    raw: Mapping[str, object], *, where: str, generation: Mapping[str, object] | None = None
) -> DecoderConfig:
    """Checks and interprets the content of a config.json.

    Args:
        raw: the content of config.json.
        where: named in every message.
        generation: the content of generation_config.json; see `generation_config`.

    Raises:
        BaseModelError: something in `raw` cannot be honoured.
    """
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in _HF_CONFIGS:
        supported = ", ".join(_HF_CONFIGS)
        raise BaseModelError(
            f"{where}: model_type {model_type!r} is not supported; it must be one of {supported}"
        )
    check_keys(raw, model_type, where)
    rope_parameters = check_rope_settings(raw, where)
    settings = {key: value for key, value in raw.items() if key in honoured_keys(model_type)}
    settings.pop("rope_scaling", None)
    settings["rope_parameters"] = dict(rope_parameters)
    hf = _interpret(_HF_CONFIGS[model_type], settings, where)
    return _decoder_config(model_type, hf, raw, generation or {}, where)


def _read_object(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BaseModelError(
            f"{path}: cannot be read as JSON ({_one_line(error)}); fetch it again"
        ) from error
    if not isinstance(content, dict):
        raise BaseModelError(f"{path}: is not a JSON object; fetch it again")
    return content


def _interpret(hf_class: type[HfConfig], settings: dict[str, object], where: str) -> HfConfig:
    try:
        return hf_class.from_dict(settings)
    except (StrictDataclassError, ValueError, TypeError, KeyError) as error:
        raise BaseModelError(f"{where}: transformers refuses it ({_one_line(error)}); correct it") from error


def _decoder_config(
    model_type: str, hf: HfConfig, raw: Mapping[str, object], generation: Mapping[str, object], where: str
) -> DecoderConfig:
    shape = _shape(hf, where)
    # Moves an `original_max_position_embeddings` beside the rope settings into them, as every model does.
    hf.standardize_rope_params()
    assert hf.rope_parameters is not None  # filled in by every config class
    rope_parameters = cast("dict[str, RopeValue]", dict(hf.rope_parameters))
    qwen2 = model_type == "qwen2"
    biased = bool(getattr(hf, "attention_bias", False))
    return DecoderConfig(
        model_type=model_type,
        shape=shape,
        whole_shape=shape,
        rms_norm_eps=float(hf.rms_norm_eps),
        tie_word_embeddings=hf.tie_word_embeddings,
        attention_bias_qkv=qwen2 or biased,
        attention_bias_o=biased,
        mlp_bias=bool(getattr(hf, "mlp_bias", False)),
        qk_norm=model_type == "qwen3",
        sliding_window=_sliding_window(hf, where),
        rope=RopeConfig.interpreted(rope_parameters, shape.head_dim, hf.max_position_embeddings, where),
        max_position_embeddings=hf.max_position_embeddings,
        eos_token_ids=_eos_token_ids(generation.get("eos_token_id", hf.eos_token_id), where),
        bos_token_id=hf.bos_token_id,
        dtype=_dtype(raw, where),
        greedy_settings=find_greedy_settings(generation),
    )


def _shape(hf: HfConfig, where: str) -> BaseShape:
    num_heads, num_kv_heads = hf.num_attention_heads, hf.num_key_value_heads
    head_dim = getattr(hf, "head_dim", None) or hf.hidden_size // num_heads
    assert num_kv_heads is not None  # filled in by every config class
    if num_heads % num_kv_heads:
        raise BaseModelError(
            f"{where}: 'num_attention_heads' {num_heads} is not a multiple of 'num_key_value_heads' "
            f"{num_kv_heads}; correct it"
        )
    if head_dim % 2:
        raise BaseModelError(f"{where}: 'head_dim' is {head_dim}, rope needs an even one; correct it")
    return BaseShape(
        num_layers=hf.num_hidden_layers,
        hidden_size=hf.hidden_size,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        intermediate_size=hf.intermediate_size,
        vocab_size=hf.vocab_size,
    )


def _sliding_window(hf: HfConfig, where: str) -> tuple[int | None, ...]:
    window: int | None = getattr(hf, "sliding_window", None)
    layer_types: list[str] | None = getattr(hf, "layer_types", None)
    if layer_types is None:
        return (window,) * hf.num_hidden_layers
    unknown = set(layer_types) - {"full_attention", "sliding_attention"}
    if unknown or len(layer_types) != hf.num_hidden_layers:
        raise BaseModelError(
            f"{where}: 'layer_types' must give full_attention or sliding_attention for each of the "
            f"{hf.num_hidden_layers} layers; correct it"
        )
    if window is None and "sliding_attention" in layer_types:
        raise BaseModelError(
            f"{where}: 'layer_types' has sliding_attention without a 'sliding_window'; give one"
        )
    return tuple(window if kind == "sliding_attention" else None for kind in layer_types)


def _eos_token_ids(value: object, where: str) -> tuple[int, ...]:
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(token_id) is int for token_id in ids):
        raise BaseModelError(f"{where}: 'eos_token_id' is {value!r}, not token ids; correct it")
    return tuple(ids)


def _dtype(raw: Mapping[str, object], where: str) -> torch.dtype | None:
    name = raw.get("dtype") or raw.get("torch_dtype")
    if name is None:
        return None
    if not isinstance(name, str) or name not in _DTYPES:
        supported = ", ".join(_DTYPES)
        raise BaseModelError(f"{where}: dtype {name!r} is not supported; convert the weights to {supported}")
    return _DTYPES[name]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
