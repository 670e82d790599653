"""What CaraServe does with every field of PEFT's LoraConfig: honour it, ignore it, or refuse it by name.

A field that is in none of the tables is refused too, so that a newer PEFT never changes an answer in
silence. Knows names and values of fields, not what the honoured ones mean: see `peft_config`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from caraserve_cli.errors import AdapterError

# Read and applied by `peft_config`.
HONOURED: Final = frozenset(
    {
        "r",
        "lora_alpha",
        "rank_pattern",
        "alpha_pattern",
        "use_rslora",
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "lora_bias",
    }
)

# They steer training, or say where the adapter came from; the saved tensors mean the same whatever they say.
HARMLESS: Final = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "revision",
        "peft_version",
        "inference_mode",
        "lora_dropout",
        "megatron_config",
        "megatron_core",
        "runtime_config",
        # Only read where `use_qalora` is set, which is refused.
        "qalora_group_size",
        # Details of an initialisation; `init_lora_weights` itself is judged below.
        "loftq_config",
        "eva_config",
        "corda_config",
        "lora_ga_config",
        # Only concerns modules_to_save, embeddings and the head, all refused.
        "ensure_weight_tying",
        # PEFT before 0.3 wrote it; it said when to merge, not what.
        "merge_weights",
    }
)

# Refused unless switched off: null, false, or empty. The text says what the field asks for.
REFUSED: Final[Mapping[str, str]] = {
    "use_dora": "DoRA rescales the base weights",
    "use_qalora": "QA-LoRA pools the input of the adapter",
    "use_bdlora": "BD-LoRA stores block-diagonal factors",
    "modules_to_save": "it replaces whole modules of the base",
    "trainable_token_indices": "it replaces rows of the embedding",
    "layer_replication": "it changes the layers of the base",
    "target_parameters": "LoRA on bare parameters is not served",
    "alora_invocation_tokens": "activated LoRA changes only part of the tokens",
    "arrow_config": "Arrow routes between adapters",
    "kasa_config": "KaSA truncates the base weights",
    "velora_config": "VeLoRA is not served",
    "monteclora_config": "MonteCLoRA perturbs the adapter",
    "fan_in_fan_out": "it is for bases that store transposed weights",
    # PEFT before 0.3: LoRA on parts of a merged q, k, v projection.
    "enable_lora": "LoRA on merged projections is not served",
}

OBJECTS_OF_SETTINGS: Final = frozenset(
    {"use_bdlora", "arrow_config", "kasa_config", "velora_config", "monteclora_config"}
)

# Judged one by one in `check_fields`.
JUDGED: Final = frozenset({"peft_type", "task_type", "bias", "init_lora_weights"})

CLASSIFIED: Final = HONOURED | HARMLESS | REFUSED.keys() | JUDGED

# Starting points that leave the base as it is. The adapter's tensors are complete by themselves.
_HARMLESS_INITS: Final = ("gaussian", "eva", "orthogonal", "mica")
# Starting points that move a part of the base into the adapter: the saved A and B fit only that changed base.
_BASE_CHANGING_INITS: Final = ("pissa", "olora", "corda", "loftq", "lora_ga")


def is_off(value: object) -> bool:
    """Whether a switch of LoraConfig with this value asks for nothing: null, false or empty."""
    return value is None or value is False or value in ("", [], {}, ())


def check_fields(adapter: str, fields: Mapping[str, object]) -> None:
    """Refuses an adapter_config.json that asks for anything CaraServe does not do.

    Raises:
        AdapterError: names the field, its value and what to do.
    """
    if fields.get("peft_type") != "LORA":
        raise AdapterError(adapter, f"peft_type is {shown(fields.get('peft_type'))}; only LORA is served")
    if fields.get("task_type") not in (None, "CAUSAL_LM"):
        raise AdapterError(
            adapter, f"task_type is {shown(fields['task_type'])}; only CAUSAL_LM adapters can be served"
        )
    if fields.get("bias") not in (None, "none"):
        raise AdapterError(
            adapter,
            f"bias is {shown(fields['bias'])}, which replaces biases of the base; train it with bias 'none'",
        )
    for field, meaning in REFUSED.items():
        # An empty object of settings is one with PEFT's defaults.
        is_default = fields.get(field) == {} and field in OBJECTS_OF_SETTINGS
        if is_default or not is_off(fields.get(field)):
            raise AdapterError(
                adapter,
                f"{field} is {shown(fields[field])}, which cannot be honoured ({meaning}); train it without",
            )
    for field, value in fields.items():
        if field not in CLASSIFIED and not is_off(value):
            raise AdapterError(
                adapter,
                f"this version of CaraServe does not know the field {field} (it is {shown(value)}); "
                "train the adapter without it or update CaraServe",
            )
    _check_init(adapter, fields.get("init_lora_weights"))


def _check_init(adapter: str, init: object) -> None:
    if isinstance(init, str) and init.lower().startswith(_BASE_CHANGING_INITS):
        raise AdapterError(
            adapter,
            f"init_lora_weights is {shown(init)}, so its weights fit a changed base only; save it again with "
            "PEFT's path_initial_model_for_weight_conversion, or merge it",
        )
    if init is not None and not isinstance(init, bool) and str(init).lower() not in _HARMLESS_INITS:
        raise AdapterError(
            adapter, f"init_lora_weights is {shown(init)}, which this version of CaraServe does not know"
        )


def shown(value: object) -> str:
    """The value on one short line; a lone true, false or null as the file has it."""
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
