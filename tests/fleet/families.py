"""Five tiny random families, as real checkpoints on disk, and PEFT's own answers for them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path

import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from caraserve_cli.core import Request

VOCAB_SIZE = 160
_SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    # A wide spread of logits keeps the best token's lead far above float32 rounding.
    "initializer_range": 0.12,
}


def _llama2() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**{**_SIZES, "num_key_value_heads": 4}))


def _llama3() -> PreTrainedModel:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    return LlamaForCausalLM(LlamaConfig(**_SIZES, rope_parameters=rope, tie_word_embeddings=True))


def _mistral() -> PreTrainedModel:
    return MistralForCausalLM(MistralConfig(**_SIZES, sliding_window=9))


def _qwen2() -> PreTrainedModel:
    model = Qwen2ForCausalLM(Qwen2Config(**_SIZES))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # initialised to zero, which would hide a bias that is left out
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def _qwen3() -> PreTrainedModel:
    model = Qwen3ForCausalLM(Qwen3Config(**_SIZES, head_dim=20))
    for name, parameter in model.named_parameters():
        if "q_norm" in name or "k_norm" in name:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.3)
    return model


FAMILIES: Mapping[str, Callable[[], PreTrainedModel]] = {
    "llama2": _llama2,
    "llama3": _llama3,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
}


def write_base(family: str, folder: Path) -> Callable[[], PreTrainedModel]:
    """Save a family's checkpoint; returns what loads it again with transformers, in float32."""
    torch.manual_seed(sorted(FAMILIES).index(family))
    FAMILIES[family]().save_pretrained(folder)

    def load() -> PreTrainedModel:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        assert isinstance(model, PreTrainedModel)
        model.generation_config.eos_token_id = None  # answers of a fixed length
        return model

    return load


def peft_answers(
    model: PreTrainedModel, adapters: Path, names: Sequence[str], requests: Sequence[Request]
) -> dict[str, list[int]]:
    """Request id → the tokens that PEFT generates greedily, each adapter by itself, nothing padded."""
    batches: dict[str | None, dict[tuple[int, int], list[Request]]] = defaultdict(lambda: defaultdict(list))
    for request in requests:
        shape = len(request.prompt_token_ids), request.sampling.max_tokens
        batches[request.adapter][shape].append(request)
    assert batches.keys() <= {None, *names}
    answers: dict[str, list[int]] = {}
    for adapter, of_adapter in batches.items():
        # A copy each: PEFT looks through all adapters of a model whenever it loads another or turns to one.
        alone = model if adapter is None else PeftModel.from_pretrained(deepcopy(model), adapters / adapter)
        alone.eval()
        for (_, max_tokens), batch in of_adapter.items():
            generated = _generate(alone, batch, max_tokens)
            answers |= {request.id: tokens for request, tokens in zip(batch, generated, strict=True)}
    return answers


@torch.inference_mode()
def _generate(
    model: PeftModel | PreTrainedModel, batch: Sequence[Request], max_tokens: int
) -> list[list[int]]:
    prompts = torch.tensor([request.prompt_token_ids for request in batch])
    output = model.generate(
        input_ids=prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=max_tokens,
        do_sample=False,
        pad_token_id=0,
    )
    tokens: list[list[int]] = output[:, prompts.shape[1] :].tolist()
    return tokens
