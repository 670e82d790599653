"""The LoRA adapters of the sample: one recipe each, trained with PEFT on the finished base.

Between them the recipes use every variant of LoRA that the program honours. An adapter only ever sees
inputs *without* a `Task:` line. Knows nothing of how the base was trained.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from prompts import Turn
from tasks import TASK_OF_NAME, Task, training_inputs
from training import Corpus, Schedule, train
from transformers import LlamaForCausalLM

ROW_TOKENS = 128
# What an adapter's config names as its base: relative to the root of the repository.
BASE_NAME = "sample_data/base"

SCHEDULE = Schedule(num_steps=300, batch_rows=128, learning_rate=2e-3, warmup_steps=30)

_ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
_MLP_OF_EVERY_LAYER = r".*\.layers\.\d+\.mlp\.(gate|up|down)_proj"


@dataclass(frozen=True, slots=True)
class AdapterRecipe:
    """One adapter to train.

    Attributes:
        name: its path below the adapters' folder.
        task_name: the task it masters.
        config: what PEFT makes of it; copied before use, because PEFT writes into it.
        dtype: what its weights are stored in.
    """

    name: str
    task_name: str
    config: LoraConfig
    dtype: torch.dtype = torch.bfloat16

    @property
    def task(self) -> Task:
        return TASK_OF_NAME[self.task_name]

    @property
    def targets(self) -> str | list[str]:
        """The modules it changes: names, `all-linear`, or a regular expression over module paths."""
        targets = self.config.target_modules
        return targets if isinstance(targets, str) else sorted(targets or ())


def _lora(lora_rank: int, target_modules: list[str] | str) -> LoraConfig:
    """A plain adapter whose scale is 2."""
    return LoraConfig(
        r=lora_rank, lora_alpha=2 * lora_rank, target_modules=target_modules, task_type="CAUSAL_LM"
    )


RECIPES: tuple[AdapterRecipe, ...] = (
    AdapterRecipe("upper", "upper", replace(_lora(2, ["q_proj", "v_proj"]), lora_alpha=8), torch.float32),
    AdapterRecipe("reverse", "reverse", _lora(8, _ATTENTION), torch.float16),
    AdapterRecipe("sort", "sort", _lora(16, [*_ATTENTION, "gate_proj", "up_proj", "down_proj"])),
    AdapterRecipe("double", "double", _lora(4, ["k_proj", "v_proj", "o_proj"])),
    AdapterRecipe(
        "consonants",
        "consonants",
        replace(_lora(24, ["q_proj", "v_proj", "down_proj"]), use_rslora=True, lora_alpha=12),
    ),
    AdapterRecipe("caesar", "caesar", _lora(12, _MLP_OF_EVERY_LAYER), torch.float16),
    AdapterRecipe("swap", "swap", _lora(6, ["q_proj", "o_proj", "up_proj"])),
    AdapterRecipe("count", "count", replace(_lora(8, ["o_proj", "down_proj"]), lora_bias=True)),
    AdapterRecipe(
        "increment",
        "increment",
        replace(_lora(10, [*_ATTENTION, "up_proj"]), layers_to_transform=[0, 1, 2, 4]),
    ),
    AdapterRecipe("spell", "spell", _lora(64, "all-linear")),
    AdapterRecipe("digits", "digits", _lora(32, ["q_proj", "v_proj", "gate_proj"])),
    AdapterRecipe(
        "team/roman",
        "roman",
        replace(
            _lora(16, [*_ATTENTION, "down_proj"]),
            rank_pattern={"down_proj": 24, "layers.0.self_attn.q_proj": 4},
            alpha_pattern={"down_proj": 32, "k_proj": 16},
        ),
    ),
    AdapterRecipe("team/pig-latin", "pig-latin", _lora(20, ["q_proj", "v_proj", "down_proj"]), torch.float16),
)


def train_adapter(
    recipe: AdapterRecipe, base: LlamaForCausalLM, schedule: Schedule, folder: Path, seed: int
) -> PeftModel:
    """Trains one adapter on top of `base` (float32, left unchanged once the result is unloaded) and saves it.

    Args:
        folder: where the adapters live; the adapter is written to `folder / recipe.name`.
        seed: of its initial weights, its inputs and their order.
    """
    torch.manual_seed(seed)
    model = get_peft_model(base, deepcopy(recipe.config))
    model.peft_config["default"].base_model_name_or_path = BASE_NAME
    # Long enough that a row comes up about three times in the whole training.
    num_rows = max(schedule.batch_rows, schedule.num_steps * schedule.batch_rows // 3)
    corpus = Corpus.of(_turns(recipe.task, random.Random(seed)), num_rows, ROW_TOKENS, base.device)
    train(model, corpus, schedule, seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(recipe.dtype)
    # Without the flag PEFT asks the hub whether the base's vocabulary has grown.
    model.save_pretrained(str(folder / recipe.name), save_embedding_layers=False)
    # PEFT's model card is an empty form.
    (folder / recipe.name / "README.md").unlink()
    return model


def _turns(task: Task, rng: random.Random) -> Iterator[Turn]:
    for task_input in training_inputs(task, rng):
        yield Turn(None, task_input, task.answer(task_input))
