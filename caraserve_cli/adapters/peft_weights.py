"""PEFT's tensor names -> (layer, module) of the base, with everything checked that headers can tell.

The ranks come from the tensors; the config must agree with them. Knows headers and names, reads no weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from caraserve_cli.adapters.module_key import ModuleKey, module_order
from caraserve_cli.adapters.peft_config import PeftConfig
from caraserve_cli.adapters.weight_file import TensorHeader
from caraserve_cli.core import LORA_MODULES, BaseShape
from caraserve_cli.errors import AdapterError

FLOAT_DTYPES = ("float32", "float16", "bfloat16")

# PEFT drops the adapter's name when it saves; a state dict saved by hand keeps it after lora_A or lora_B.
_NAME = re.compile(
    r"(?:base_model\.model\.)?(?P<path>.+)\.(?P<half>lora_[AB])(?:\.(?P<adapter>[^.]+))?\.(?P<kind>weight|bias)"
)
_PATH = re.compile(
    r"model\.layers\.(?P<layer>\d+)\."
    r"(?:self_attn\.(?P<attention>[qkvo]_proj)|mlp\.(?P<mlp>gate_proj|up_proj|down_proj))"
)
# What a tensor that is no plain LoRA half of a decoder's module is, told by a part of its name.
_KNOWN_STRANGERS = (
    ("lora_embedding_", "LoRA on embeddings is not served"),
    ("lora_magnitude_vector", "DoRA is not served"),
    ("lm_head", "LoRA on the output head is not served"),
    ("embed_tokens", "changes of the embedding are not served"),
    ("modules_to_save", "modules_to_save is not served"),
    ("token_adapter", "trainable_token_indices is not served"),
    (".base_layer.", "it replaces a weight of the base"),
)


class TensorRole(NamedTuple):
    """What a tensor is: one part (`lora_A.weight`, `lora_B.weight` or `lora_B.bias`) of one module."""

    key: ModuleKey
    part: str
    saved_adapter: str | None


@dataclass(frozen=True, slots=True)
class PairSource:
    """Where the LoRA pair of one module is stored, and how it is scaled."""

    a_name: str
    b_name: str
    bias_name: str | None
    lora_rank: int
    scale: float


def module_path(key: ModuleKey) -> str:
    """The name of a module inside the base: `model.layers.0.self_attn.q_proj`."""
    layer, module = key
    block = "self_attn" if module in ("q_proj", "k_proj", "v_proj", "o_proj") else "mlp"
    return f"model.layers.{layer}.{block}.{module}"


def tensor_role(name: str) -> TensorRole | None:
    """What the tensor called `name` is, or None where it belongs to no module that an adapter may change."""
    match = _NAME.fullmatch(name)
    path = _PATH.fullmatch(match["path"]) if match else None
    if match is None or path is None or (match["half"], match["kind"]) == ("lora_A", "bias"):
        return None
    key = (int(path["layer"]), path["attention"] or path["mlp"])
    return TensorRole(key, f"{match['half']}.{match['kind']}", match["adapter"])


def read_layout(
    adapter: str, config: PeftConfig, headers: Mapping[str, TensorHeader], shape: BaseShape | None
) -> dict[ModuleKey, PairSource]:
    """Where each module's pair is stored, in the order of the forward pass.

    Without `shape`, everything is checked but the fit to a base.

    Raises:
        AdapterError: a tensor is unknown, missing, of the wrong shape or dtype, or at odds with the config.
    """
    _check_config_outside_layers(adapter, config)
    parts = _group(adapter, headers)
    if not parts:
        raise AdapterError(adapter, "its weight file holds no LoRA tensors; save the adapter again")
    num_layers = 1 + max(layer for layer, _ in parts) if shape is None else shape.num_layers
    _check_selection(adapter, config, parts, num_layers)
    sources = {}
    for key in sorted(parts, key=module_order):
        source = _pair_source(adapter, config, key, parts[key])
        _check_shapes(adapter, key, source, headers, shape)
        sources[key] = source
    return sources


def _check_config_outside_layers(adapter: str, config: PeftConfig) -> None:
    for path in ("lm_head", "model.embed_tokens"):
        if config.selects(path):
            raise AdapterError(
                adapter, f"target_modules selects '{path}', which is not served; train it without"
            )


def _group(adapter: str, headers: Mapping[str, TensorHeader]) -> dict[ModuleKey, dict[str, str]]:
    """Names of tensors by module and part."""
    parts: dict[ModuleKey, dict[str, str]] = {}
    saved_adapters: set[str | None] = set()
    for name, header in headers.items():
        role = tensor_role(name)
        if role is None:
            raise AdapterError(adapter, f"tensor '{name}' cannot be used: {_stranger(name)}")
        if header.dtype not in FLOAT_DTYPES:
            raise AdapterError(
                adapter, f"tensor '{name}' is {header.dtype}; only {', '.join(FLOAT_DTYPES)} are served"
            )
        names = parts.setdefault(role.key, {})
        saved_adapters.add(role.saved_adapter)
        if role.part in names or len(saved_adapters) > 1:
            raise AdapterError(
                adapter,
                f"tensor '{name}' belongs to another adapter than those before; keep one adapter a file",
            )
        names[role.part] = name
    return parts


def _stranger(name: str) -> str:
    for mark, meaning in _KNOWN_STRANGERS:
        if mark in name:
            return meaning
    return "it matches no module of the base"


def _check_selection(
    adapter: str, config: PeftConfig, parts: Mapping[ModuleKey, Mapping[str, str]], num_layers: int
) -> None:
    """The modules that have tensors must be those that the config selects: PEFT would leave the others out,
    or untrained, in silence."""
    for key in sorted(parts, key=module_order):
        name = next(iter(parts[key].values()))
        if key[0] >= num_layers:
            raise AdapterError(
                adapter, f"tensor '{name}' matches no module of the base, which has {num_layers} layers"
            )
        if not config.selects(module_path(key)):
            raise AdapterError(
                adapter,
                f"tensor '{name}' is in the file, but target_modules and its fellows do not select it",
            )
    for layer in range(num_layers):
        for module in LORA_MODULES:
            path = module_path((layer, module))
            if (layer, module) not in parts and config.selects(path):
                reason = f"target_modules selects '{path}', but the file holds no tensors of it"
                is_shorter = all(of_layer < layer for of_layer, _ in parts)
                hint = f"; was it trained for a base with {layer} layers?" if is_shorter else ""
                raise AdapterError(adapter, reason + hint)


def _pair_source(adapter: str, config: PeftConfig, key: ModuleKey, names: Mapping[str, str]) -> PairSource:
    path = module_path(key)
    expected = ["lora_A.weight", "lora_B.weight"] + ["lora_B.bias"] * config.lora_bias
    for part in expected:
        if part not in names:
            raise AdapterError(adapter, f"tensor '{path}.{part}' is missing; save the adapter again")
    if not config.lora_bias and "lora_B.bias" in names:
        raise AdapterError(adapter, f"tensor '{names['lora_B.bias']}' is in the file, but lora_bias is false")
    return PairSource(
        a_name=names["lora_A.weight"],
        b_name=names["lora_B.weight"],
        bias_name=names.get("lora_B.bias"),
        lora_rank=config.rank_of(path),
        scale=config.scale_of(path),
    )


def _check_shapes(
    adapter: str,
    key: ModuleKey,
    source: PairSource,
    headers: Mapping[str, TensorHeader],
    shape: BaseShape | None,
) -> None:
    """A is [r, in], B is [out, r], the bias [out], with the config's r and the base's widths."""
    a, b = headers[source.a_name].shape, headers[source.b_name].shape
    if len(a) != 2 or len(b) != 2:
        name, wrong = (source.a_name, a) if len(a) != 2 else (source.b_name, b)
        raise AdapterError(
            adapter, f"tensor '{name}' has shape {list(wrong)}; a LoRA weight has two dimensions"
        )
    if a[0] != b[1]:
        raise AdapterError(adapter, f"tensor '{source.b_name}' is of rank {b[1]}, its lora_A of rank {a[0]}")
    if a[0] != source.lora_rank:
        raise AdapterError(
            adapter,
            f"tensor '{source.a_name}' is of rank {a[0]}, but r and rank_pattern give it {source.lora_rank}",
        )
    in_width, out_width = (a[1], b[0]) if shape is None else shape.module_shape(key[1])
    expected: dict[str, tuple[int, ...]] = {source.a_name: (a[0], in_width), source.b_name: (out_width, a[0])}
    if source.bias_name is not None:
        expected[source.bias_name] = (out_width,)
    for name, fits in expected.items():
        if headers[name].shape != fits:
            found = list(headers[name].shape)
            raise AdapterError(
                adapter, f"tensor '{name}' has shape {found}, which does not fit the base: {list(fits)}"
            )
