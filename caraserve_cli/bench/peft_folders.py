"""Folders of a random base and synthetic adapters, for a peer that reads nothing else.

The base is its config.json alone; an adapter is in PEFT's own format.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from caraserve_cli.adapters.peft_weights import module_path
from caraserve_cli.bench.peft_peer import make_hf_config
from caraserve_cli.core import BaseShape
from caraserve_cli.fleet.synthetic_adapter import SyntheticAdapter
from caraserve_cli.fleet.synthetic_adapters import SyntheticAdapters
from caraserve_cli.model.resolve import ResolvedBase


def write_base_config(folder: Path, base: ResolvedBase) -> None:
    """Make the folder, with the config.json that a checkpoint of this base would have."""
    config = make_hf_config(base)
    config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]]
    config.save_pretrained(folder)


def write_adapter(folder: Path, adapter: SyntheticAdapter, shape: BaseShape, dtype: torch.dtype) -> None:
    """Make the folder, with an adapter that PEFT can load: alpha is its rank, so that its scale is 1."""
    folder.mkdir()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": adapter.lora_rank,
        "lora_alpha": adapter.lora_rank,
        "target_modules": list(adapter.modules),
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    made = SyntheticAdapters([adapter], packed=True).load(adapter.name, folder, shape, dtype)
    tensors: dict[str, torch.Tensor] = {}
    for key, pair in made.pairs.items():
        path = f"base_model.model.{module_path(key)}"
        # Copies: all pairs share one memory, which safetensors refuses to save.
        tensors[f"{path}.lora_A.weight"] = pair.a.clone()
        tensors[f"{path}.lora_B.weight"] = pair.b_rows.T.clone(memory_format=torch.contiguous_format)
    save_file(tensors, folder / "adapter_model.safetensors")
