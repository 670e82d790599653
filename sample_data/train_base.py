"""The base model and its tokenizer: a small Llama that learns every task under its name.

On an input without a `Task:` line it repeats the input, so that an adapter has all the skill it needs
in the base and only changes what is done by default. Knows nothing of adapters.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import torch
from prompts import (
    BOS_TOKEN,
    BOS_TOKEN_ID,
    CHAT_TEMPLATE,
    EOS_TOKEN,
    EOS_TOKEN_ID,
    PAD_TOKEN,
    PAD_TOKEN_ID,
    VOCAB_SIZE,
    Turn,
)
from tasks import TASKS, training_inputs
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn
from training import Corpus, Schedule, train
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

MAX_CONTEXT_TOKENS = 512
ROW_TOKENS = 128
CORPUS_ROWS = 400_000

SCHEDULE = Schedule(
    num_steps=6_000, batch_rows=512, learning_rate=1.5e-3, warmup_steps=200, weight_decay=0.05
)

# One turn in eight is to be repeated; the others name their task, the slowly learnt ones more often.
_COPY_FRACTION = 1 / 8
_TASK_WEIGHTS = {"sort": 3.0, "reverse": 2.0, "spell": 1.5, "roman": 2.0}


def base_config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        intermediate_size=640,
        max_position_embeddings=MAX_CONTEXT_TOKENS,
        bos_token_id=BOS_TOKEN_ID,
        eos_token_id=EOS_TOKEN_ID,
        pad_token_id=PAD_TOKEN_ID,
        tie_word_embeddings=False,
    )


def save_tokenizer(folder: Path) -> None:
    """Byte-level, without merges: the id of a byte is its value."""
    tokenizer = Tokenizer(models.BPE(vocab=_byte_vocabulary(), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([BOS_TOKEN, EOS_TOKEN, PAD_TOKEN])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS_TOKEN} $A",
        pair=f"{BOS_TOKEN} $A $B",
        special_tokens=[(BOS_TOKEN, BOS_TOKEN_ID)],
    )
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=BOS_TOKEN,
        eos_token=EOS_TOKEN,
        pad_token=PAD_TOKEN,
        padding_side="left",
        model_max_length=MAX_CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )
    fast.save_pretrained(folder, save_jinja_files=False)


def _byte_vocabulary() -> dict[str, int]:
    """The character by which a byte-level tokenizer writes a byte -> the byte.

    Printable bytes are written as themselves, the others, in order, as the characters from 256 on.
    """
    printable = {
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    }
    others = iter(range(256, 512))
    return {chr(byte if byte in printable else next(others)): byte for byte in range(256)}


def train_base(folder: Path, schedule: Schedule, corpus_rows: int, device: torch.device, seed: int) -> float:
    """Trains the base from nothing and saves it to `folder` in bfloat16; returns the last loss."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(base_config())
    nn.Module.to(model, device)
    corpus = Corpus.of(_mixture(random.Random(seed)), corpus_rows, ROW_TOKENS, device)
    loss = train(model, corpus, schedule, seed)
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=BOS_TOKEN_ID, eos_token_id=EOS_TOKEN_ID, pad_token_id=PAD_TOKEN_ID
    )
    nn.Module.to(model, torch.bfloat16)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return loss


def _mixture(rng: random.Random) -> Iterator[Turn]:
    """Endless turns over all tasks, from the training split."""
    inputs = {task.name: training_inputs(task, rng) for task in TASKS}
    weights = [_TASK_WEIGHTS.get(task.name, 1.0) for task in TASKS]
    while True:
        for task in rng.choices(TASKS, weights=weights, k=1024):
            task_input = next(inputs[task.name])
            if rng.random() < _COPY_FRACTION:
                yield Turn(None, task_input, task_input)
            else:
                yield Turn(task.name, task_input, task.answer(task_input))
