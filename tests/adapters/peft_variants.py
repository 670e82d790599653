"""Real PEFT adapters of every variant that CaraServe honours, with random weights strong enough to be seen.

Works for any decoder whose layers are named as Llama's (Llama, Mistral, Qwen2, Qwen3) and that has at least
two of them. An adapter of the queries alone only shows in the answers of a base whose layers have a say in
them: give tiny bases an `initializer_range` near 1/sqrt(width), not the usual 0.02.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel

ModelFactory = Callable[[], PreTrainedModel]

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]

# Root mean square of what a module's LoRA adds to an input of root mean square 1: about what the base's own
# module makes of it where its weights are initialised at 1/sqrt(width).
STRENGTH = 1.0


@dataclass(frozen=True)
class Variant:
    """One adapter: what PEFT is asked for, and how it is saved."""

    name: str
    config: Mapping[str, Any]
    dtype: torch.dtype = torch.float32
    safetensors: bool = True
    saved_adapter: str = field(default="default")


VARIANTS = (
    Variant("query-value-r4", {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}),
    Variant("query-r2", {"r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}),
    Variant("value-r1", {"r": 1, "lora_alpha": 3, "target_modules": ["v_proj"]}),
    Variant("attention-r8", {"r": 8, "lora_alpha": 16, "target_modules": ATTENTION}),
    Variant("mlp-r16", {"r": 16, "lora_alpha": 8, "target_modules": MLP}),
    Variant("all-linear-r6", {"r": 6, "lora_alpha": 12, "target_modules": "all-linear"}),
    Variant("attention-r64", {"r": 64, "lora_alpha": 32, "target_modules": ATTENTION}),
    Variant("regex", {"r": 5, "lora_alpha": 10, "target_modules": r".*\.(q|o|down)_proj"}),
    Variant(
        "regex-of-a-layer",
        {"r": 5, "lora_alpha": 10, "target_modules": r"model\.layers\.1\.(self_attn\.v|mlp\.up)_proj"},
    ),
    Variant(
        "rank-pattern",
        {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ATTENTION,
            "rank_pattern": {
                r"layers\.0\.self_attn\.q_proj": 16,
                "v_proj": 2,
                r".*\.1\.self_attn\.o_proj": 7,
            },
        },
    ),
    Variant(
        "alpha-pattern",
        {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ATTENTION,
            "alpha_pattern": {r"^model\.layers\.1\..*": 3, "q_proj": 32},
        },
    ),
    Variant(
        "both-patterns",
        {
            "r": 8,
            "lora_alpha": 16,
            "target_modules": [*ATTENTION, *MLP],
            "rank_pattern": {"down_proj": 3, "self_attn.q_proj": 24},
            "alpha_pattern": {"down_proj": 12, "k_proj": 1},
        },
    ),
    Variant("rslora-r16", {"r": 16, "lora_alpha": 8, "use_rslora": True, "target_modules": ATTENTION}),
    Variant(
        "rslora-patterns",
        {
            "r": 9,
            "lora_alpha": 6,
            "use_rslora": True,
            "target_modules": ["q_proj", "up_proj"],
            "rank_pattern": {"up_proj": 25},
            "alpha_pattern": {r"layers.0.self_attn.q_proj": 2},
        },
    ),
    Variant("last-layer", {"r": 4, "lora_alpha": 8, "target_modules": ATTENTION, "layers_to_transform": [1]}),
    Variant(
        "first-layer",
        {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": [*ATTENTION, *MLP],
            "layers_to_transform": 0,
            "layers_pattern": "layers",
        },
    ),
    Variant(
        "excluded",
        {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "exclude_modules": r".*\.0\.mlp\..*"},
    ),
    Variant("lora-bias", {"r": 4, "lora_alpha": 8, "lora_bias": True, "target_modules": [*ATTENTION, *MLP]}),
    Variant("float16", {"r": 8, "lora_alpha": 16, "target_modules": ATTENTION}, dtype=torch.float16),
    Variant("bfloat16", {"r": 8, "lora_alpha": 16, "target_modules": ATTENTION}, dtype=torch.bfloat16),
    Variant("bin", {"r": 4, "lora_alpha": 8, "target_modules": ATTENTION}, safetensors=False),
    Variant(
        "bin-bfloat16",
        {"r": 4, "lora_alpha": 8, "target_modules": ATTENTION},
        dtype=torch.bfloat16,
        safetensors=False,
    ),
    Variant("teams/one/nested", {"r": 4, "lora_alpha": 8, "target_modules": ["v_proj", "down_proj"]}),
    Variant("named/other", {"r": 4, "lora_alpha": 8, "target_modules": ATTENTION}, saved_adapter="other"),
)


def write_variants(root: Path, model_factory: ModelFactory, seed: int) -> list[str]:
    """One adapter of every variant below `root`, for the base that `model_factory` makes.

    Returns the adapters' names relative to `root`, in the order of VARIANTS.
    """
    for number, variant in enumerate(VARIANTS):
        write_variant(root, variant, model_factory, seed + number)
    return [variant.name for variant in VARIANTS]


def write_variant(root: Path, variant: Variant, model_factory: ModelFactory, seed: int) -> PeftModel:
    """Saves one adapter as PEFT saves it; returns the model that holds it."""
    model = random_adapter(model_factory(), variant, seed)
    # PEFT puts an adapter with another name than the default one into a folder of that name.
    folder = root / variant.name
    if variant.saved_adapter != "default":
        assert folder.name == variant.saved_adapter
        folder = folder.parent
    model.save_pretrained(folder, safe_serialization=variant.safetensors)
    return model


def random_adapter(base: PreTrainedModel, variant: Variant, seed: int) -> PeftModel:
    """The base with an adapter that looks trained: both A and B are far from zero, in the variant's dtype."""
    config = LoraConfig(task_type="CAUSAL_LM", **variant.config)
    model = get_peft_model(base, config, adapter_name=variant.saved_adapter, autocast_adapter_dtype=False)
    generator = torch.Generator().manual_seed(seed)
    for _, layer in lora_layers(model):
        _randomise(layer, variant.saved_adapter, generator)
        for half in (layer.lora_A, layer.lora_B):
            half[variant.saved_adapter].to(variant.dtype)
    return model.eval()


def lora_layers(model: PeftModel) -> Iterator[tuple[str, LoraLayer]]:
    """The modules that carry LoRA, with their paths inside the base."""
    for name, module in model.get_base_model().named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def _randomise(layer: LoraLayer, adapter: str, generator: torch.Generator) -> None:
    a, b = layer.lora_A[adapter], layer.lora_B[adapter]
    lora_rank, in_width = a.weight.shape
    with torch.no_grad():
        a.weight.normal_(std=in_width**-0.5, generator=generator)
        b.weight.normal_(std=STRENGTH / layer.scaling[adapter] / lora_rank**0.5, generator=generator)
        if b.bias is not None:
            b.bias.normal_(std=STRENGTH / layer.scaling[adapter], generator=generator)
