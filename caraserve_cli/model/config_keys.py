"""The keys of a config.json: which are honoured, which change no answer, and which are refused.

Checks names, and the values that need no knowledge of the model. What the values mean is the business of
`config`, and of `rope_config` for the rope settings.
"""

from __future__ import annotations

from collections.abc import Mapping

from caraserve_cli.errors import BaseModelError

_SIZES = (
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "vocab_size",
)
_OPTIONAL_SIZES = ("head_dim", "num_key_value_heads", "original_max_position_embeddings", "sliding_window")
# Handed to transformers' config class, which knows each family's defaults.
_HONOURED_BY_ALL = frozenset(
    (
        *_SIZES,
        "bos_token_id",
        "eos_token_id",
        "head_dim",
        "hidden_act",
        "num_key_value_heads",
        "original_max_position_embeddings",
        "rms_norm_eps",
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "tie_word_embeddings",
    )
)
_QWEN_WINDOW = frozenset(("layer_types", "max_window_layers", "sliding_window", "use_sliding_window"))
_HONOURED_BY_FAMILY = {
    "llama": frozenset(("attention_bias", "mlp_bias")),
    "mistral": frozenset(("sliding_window",)),
    "qwen2": _QWEN_WINDOW,
    "qwen3": _QWEN_WINDOW | {"attention_bias"},
}
# Read here, not by transformers' config class.
_READ_HERE = frozenset(("architectures", "dtype", "model_type", "torch_dtype"))
_HARMLESS = frozenset(
    (
        # Where the checkpoint comes from.
        "_name_or_path",
        "is_llama_config",
        "tokenizer_class",
        "transformers_version",
        "unsloth_fixed",
        "unsloth_version",
        # Training only.
        "attention_dropout",
        "initializer_range",
        # How transformers runs the model: no influence on the tokens.
        "_attn_implementation_autoset",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "return_dict",
        "use_cache",
        # Old Llama configs repeat max_position_embeddings here; transformers does not read it.
        "max_sequence_length",
        # Splits products into slices that are summed: only the order of float additions changes.
        "pretraining_tp",
    )
)
# Keys that are fine with one value, and what to do with any other.
_ONLY_VALUE: dict[str, tuple[object, str]] = {
    "hidden_act": ("silu", "use a base model with the SiLU activation"),
    "partial_rotary_factor": (1.0, "use a base model that rotates whole heads"),
    "rope_interleaved": (False, "convert the checkpoint to the layout of transformers"),
}
_REFUSED_ADVICE = {
    "quantization_config": "quantized weights cannot be served; use the unquantized checkpoint",
    "auto_map": "the checkpoint brings its own code; use one that transformers loads without it",
}


def honoured_keys(model_type: str) -> frozenset[str]:
    """The keys that reach the model of this family."""
    return _HONOURED_BY_ALL | _HONOURED_BY_FAMILY[model_type]


def check_keys(raw: Mapping[str, object], model_type: str, where: str) -> None:
    """Checks that every key of a config.json can be honoured. A key whose value is null asks for nothing.

    Args:
        raw: the content of config.json.
        model_type: a family that `config` supports.
        where: named in every message.

    Raises:
        BaseModelError: a key is unknown, or a size is missing or none.
    """
    _check_known(raw, honoured_keys(model_type), where)
    _check_architecture(raw, model_type, where)
    _check_sizes(raw, where)


def _check_known(raw: Mapping[str, object], honoured: frozenset[str], where: str) -> None:
    for key, value in raw.items():
        if value is None:
            continue
        if key in _ONLY_VALUE:
            allowed, advice = _ONLY_VALUE[key]
            if value != allowed:
                raise BaseModelError(
                    f"{where}: '{key}' is {value!r}, only {allowed!r} is supported; {advice}"
                )
        elif key not in honoured | _READ_HERE | _HARMLESS:
            advice = _REFUSED_ADVICE.get(
                key, "remove the key if it changes nothing, or use another base model"
            )
            raise BaseModelError(f"{where}: '{key}' cannot be honoured; {advice}")


def _check_architecture(raw: Mapping[str, object], model_type: str, where: str) -> None:
    names = raw.get("architectures")
    if names is None:
        return
    expected = f"{model_type}forcausallm"
    if not isinstance(names, list) or [str(name).lower() for name in names] != [expected]:
        raise BaseModelError(
            f"{where}: 'architectures' is {names!r}, not a causal language model of the {model_type} family; "
            f"use a ...ForCausalLM checkpoint"
        )


def _check_sizes(raw: Mapping[str, object], where: str) -> None:
    for key in _SIZES:
        if key not in raw:
            raise BaseModelError(f"{where}: '{key}' is missing; fetch the checkpoint's own config.json")
    for key in (*_SIZES, *_OPTIONAL_SIZES):
        value = raw.get(key)
        if value is None and key not in _SIZES:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise BaseModelError(f"{where}: '{key}' is {value!r}, not a positive whole number; correct it")
