"""Tokenizers trained on the spot, of the two kinds that the supported families use."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import (
    Tokenizer as Backend,
)
from tokenizers import (
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from caraserve_cli.model.tokenizer import Tokenizer, load_tokenizer

TEXTS = [
    "the quick brown fox jumps over the lazy dog",
    "hello world, hello there. the end is near!",
    "spell the number 42 and sort the letters",
]


def byte_level(folder: Path, **settings: str) -> Tokenizer:
    """As Llama 3 and Qwen have it: bytes are the alphabet, so a character may be several tokens."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    bos = backend.token_to_id("<bos>")
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", bos)])
    return _saved(backend, folder, settings)


def byte_fallback(folder: Path) -> Tokenizer:
    """As Llama 2 and Mistral have it: spaces are ▁, and characters outside the vocabulary are byte tokens."""
    backend = Backend(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=360, special_tokens=["<unk>", "<bos>", "<eos>"], show_progress=False, max_token_length=8
    )
    backend.train_from_iterator(TEXTS, trainer)
    # The byte tokens are ordinary tokens of the vocabulary: added ones would be matched in the text.
    model = backend.to_str()
    backend = Backend.from_str(_with_tokens(model, byte_tokens))
    bos = backend.token_to_id("<bos>")
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", bos)])
    return _saved(backend, folder, {})


def _with_tokens(serialized: str, tokens: list[str]) -> str:
    content = json.loads(serialized)
    vocab: dict[str, int] = content["model"]["vocab"]
    for token in tokens:
        vocab.setdefault(token, len(vocab))
    return json.dumps(content)


def _saved(backend: Backend, folder: Path, settings: dict[str, str]) -> Tokenizer:
    hf = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", **settings)
    hf.save_pretrained(folder)
    loaded = load_tokenizer(folder)
    assert loaded is not None
    return loaded
