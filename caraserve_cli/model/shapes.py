"""Short names of base models: their hub ids, and their published config.json without the weights.

With these a benchmark can make any of the models with random weights, without a download. This module knows
no torch and no files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KnownBase:
    """One published base model; `config` has the keys of its config.json that shape it."""

    hub_id: str
    config: Mapping[str, object]


def _llama(hub_id: str, sizes: tuple[int, int, int, int, int], **settings: object) -> KnownBase:
    return _base("llama", hub_id, sizes, rms_norm_eps=1e-5, **settings)


def _llama2(hub_id: str, sizes: tuple[int, int, int, int, int]) -> KnownBase:
    return _llama(
        hub_id, sizes, vocab_size=32000, max_position_embeddings=4096, bos_token_id=1, eos_token_id=2
    )


def _llama3(hub_id: str, sizes: tuple[int, int, int, int, int], **settings: object) -> KnownBase:
    tokens = {"vocab_size": 128256, "bos_token_id": 128000, "eos_token_id": 128001}
    context = {"max_position_embeddings": 8192, "rope_theta": 500000.0}
    return _llama(hub_id, sizes, **{**tokens, **context, **settings})


def _llama31(
    hub_id: str, sizes: tuple[int, int, int, int, int], rope_factor: float, **settings: object
) -> KnownBase:
    rope = {
        "rope_type": "llama3",
        "factor": rope_factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    return _llama3(hub_id, sizes, max_position_embeddings=131072, rope_scaling=rope, **settings)


def _mistral(hub_id: str, **settings: object) -> KnownBase:
    return _base(
        "mistral",
        hub_id,
        (32, 4096, 14336, 32, 8),
        rms_norm_eps=1e-5,
        max_position_embeddings=32768,
        bos_token_id=1,
        eos_token_id=2,
        **settings,
    )


def _qwen25(hub_id: str, sizes: tuple[int, int, int, int, int], **settings: object) -> KnownBase:
    tokens = {"bos_token_id": 151643, "eos_token_id": 151643, "rope_theta": 1000000.0}
    return _base("qwen2", hub_id, sizes, **{**tokens, **settings})


def _qwen3(hub_id: str, sizes: tuple[int, int, int, int, int], *, tied: bool) -> KnownBase:
    return _base(
        "qwen3",
        hub_id,
        sizes,
        head_dim=128,
        rms_norm_eps=1e-6,
        vocab_size=151936,
        max_position_embeddings=40960,
        rope_theta=1000000.0,
        tie_word_embeddings=tied,
        bos_token_id=151643,
        eos_token_id=151645,
    )


def _base(
    model_type: str, hub_id: str, sizes: tuple[int, int, int, int, int], **settings: object
) -> KnownBase:
    """`sizes`: layers, hidden size, intermediate size, heads, key/value heads."""
    num_layers, hidden_size, intermediate_size, num_heads, num_kv_heads = sizes
    config = {
        "model_type": model_type,
        "num_hidden_layers": num_layers,
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    return KnownBase(hub_id, {**config, **settings})


_SMALL_QWEN25 = {"vocab_size": 151936, "rms_norm_eps": 1e-6, "tie_word_embeddings": True}
_LARGE_QWEN25 = {"vocab_size": 152064, "max_position_embeddings": 131072}

KNOWN_BASES: Mapping[str, KnownBase] = {
    "llama2-7b": _llama2("meta-llama/Llama-2-7b-hf", (32, 4096, 11008, 32, 32)),
    "llama2-13b": _llama2("meta-llama/Llama-2-13b-hf", (40, 5120, 13824, 40, 40)),
    "llama2-70b": _llama2("meta-llama/Llama-2-70b-hf", (80, 8192, 28672, 64, 8)),
    "llama3-8b": _llama3("meta-llama/Meta-Llama-3-8B", (32, 4096, 14336, 32, 8)),
    "llama3-70b": _llama3("meta-llama/Meta-Llama-3-70B", (80, 8192, 28672, 64, 8)),
    "llama3.1-8b": _llama31("meta-llama/Llama-3.1-8B", (32, 4096, 14336, 32, 8), 8.0),
    "llama3.1-70b": _llama31("meta-llama/Llama-3.1-70B", (80, 8192, 28672, 64, 8), 8.0),
    "llama3.2-1b": _llama31(
        "meta-llama/Llama-3.2-1B", (16, 2048, 8192, 32, 8), 32.0, head_dim=64, tie_word_embeddings=True
    ),
    "llama3.2-3b": _llama31(
        "meta-llama/Llama-3.2-3B", (28, 3072, 8192, 24, 8), 32.0, head_dim=128, tie_word_embeddings=True
    ),
    # v0.1 is the one with a sliding window.
    "mistral-7b": _mistral(
        "mistralai/Mistral-7B-v0.1", vocab_size=32000, sliding_window=4096, rope_theta=10000.0
    ),
    "mistral-7b-v0.3": _mistral(
        "mistralai/Mistral-7B-v0.3", vocab_size=32768, sliding_window=None, rope_theta=1000000.0
    ),
    "qwen2.5-0.5b": _qwen25(
        "Qwen/Qwen2.5-0.5B", (24, 896, 4864, 14, 2), max_position_embeddings=32768, **_SMALL_QWEN25
    ),
    "qwen2.5-1.5b": _qwen25(
        "Qwen/Qwen2.5-1.5B", (28, 1536, 8960, 12, 2), max_position_embeddings=131072, **_SMALL_QWEN25
    ),
    "qwen2.5-3b": _qwen25(
        "Qwen/Qwen2.5-3B", (36, 2048, 11008, 16, 2), max_position_embeddings=32768, **_SMALL_QWEN25
    ),
    "qwen2.5-7b": _qwen25("Qwen/Qwen2.5-7B", (28, 3584, 18944, 28, 4), rms_norm_eps=1e-6, **_LARGE_QWEN25),
    "qwen2.5-14b": _qwen25("Qwen/Qwen2.5-14B", (48, 5120, 13824, 40, 8), rms_norm_eps=1e-5, **_LARGE_QWEN25),
    "qwen2.5-32b": _qwen25("Qwen/Qwen2.5-32B", (64, 5120, 27648, 40, 8), rms_norm_eps=1e-5, **_LARGE_QWEN25),
    "qwen2.5-72b": _qwen25("Qwen/Qwen2.5-72B", (80, 8192, 29568, 64, 8), rms_norm_eps=1e-5, **_LARGE_QWEN25),
    "qwen3-0.6b": _qwen3("Qwen/Qwen3-0.6B", (28, 1024, 3072, 16, 8), tied=True),
    "qwen3-1.7b": _qwen3("Qwen/Qwen3-1.7B", (28, 2048, 6144, 16, 8), tied=True),
    "qwen3-4b": _qwen3("Qwen/Qwen3-4B", (36, 2560, 9728, 32, 8), tied=True),
    "qwen3-8b": _qwen3("Qwen/Qwen3-8B", (36, 4096, 12288, 32, 8), tied=False),
    "qwen3-14b": _qwen3("Qwen/Qwen3-14B", (40, 5120, 17408, 40, 8), tied=False),
    "qwen3-32b": _qwen3("Qwen/Qwen3-32B", (64, 5120, 25600, 64, 8), tied=False),
}
