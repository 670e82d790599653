from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from caraserve_cli.core import SamplingParams
from caraserve_cli.errors import BaseModelError
from caraserve_cli.model.config import load_decoder_config, parse_decoder_config
from caraserve_cli.model.decoder_config import DecoderConfig
from caraserve_cli.model.generation_config import describe_unapplied
from tests.model.tiny import FAMILIES

LLAMA: dict[str, object] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "bfloat16",
    "pretraining_tp": 2,
    "use_cache": True,
}


def parse(**changes: object) -> DecoderConfig:
    return parse_decoder_config({**LLAMA, **changes}, where="config.json")


def refusal(**changes: object) -> str:
    with pytest.raises(BaseModelError) as caught:
        parse(**changes)
    message = str(caught.value)
    assert message.startswith("config.json: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("family", FAMILIES)
def test_what_transformers_writes_is_accepted(tmp_path: Path, family: str) -> None:
    FAMILIES[family].config(**FAMILIES[family].settings).save_pretrained(tmp_path)
    config = load_decoder_config(tmp_path)
    assert config.shape.num_layers == 32
    assert config.context_tokens == config.max_position_embeddings


def test_llama_by_hand() -> None:
    config = parse()
    assert (config.shape.num_layers, config.shape.head_dim, config.shape.num_kv_heads) == (4, 8, 2)
    assert config.rms_norm_eps == 1e-5
    assert config.dtype == torch.bfloat16
    assert config.sliding_window == (None,) * 4
    assert (config.eos_token_ids, config.bos_token_id) == ((2,), 1)
    assert config.rope.parameters == {"rope_type": "default", "rope_theta": 10000.0}
    switches = (config.tie_word_embeddings, config.attention_bias_qkv, config.attention_bias_o)
    assert (*switches, config.mlp_bias, config.qk_norm) == (False,) * 5


def test_biases_and_norms_of_the_families() -> None:
    qwen2 = parse(model_type="qwen2", architectures=None)
    assert (qwen2.attention_bias_qkv, qwen2.attention_bias_o, qwen2.qk_norm) == (True, False, False)
    qwen3 = parse(model_type="qwen3", architectures=None, attention_bias=True)
    assert (qwen3.attention_bias_qkv, qwen3.attention_bias_o, qwen3.qk_norm) == (True, True, True)
    assert qwen3.shape.head_dim == 128
    llama = parse(attention_bias=True, mlp_bias=True, head_dim=16)
    assert (llama.attention_bias_qkv, llama.attention_bias_o, llama.mlp_bias) == (True, True, True)
    assert llama.shape.head_dim == 16


def test_sliding_windows_of_the_families() -> None:
    mistral = {"model_type": "mistral", "architectures": None}
    assert parse(**mistral, sliding_window=7).sliding_window == (7,) * 4
    assert parse(**mistral, sliding_window=None).sliding_window == (None,) * 4
    qwen = {"model_type": "qwen2", "architectures": None, "sliding_window": 7, "max_window_layers": 2}
    assert parse(**qwen).sliding_window == (None,) * 4
    assert parse(**qwen, use_sliding_window=True).sliding_window == (None, None, 7, 7)
    kinds = ["sliding_attention", "full_attention"] * 2
    assert parse(**qwen, use_sliding_window=True, layer_types=kinds).sliding_window == (7, None, 7, None)


def test_both_spellings_of_rope_mean_the_same() -> None:
    old = parse(rope_theta=500.0, rope_scaling={"type": "linear", "factor": 2.0})
    new = parse(rope_parameters={"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0})
    assert old.rope == new.rope
    assert old.rope.kind == "linear"


def test_original_context_beside_the_rope_settings_is_honoured() -> None:
    factors = [1.0] * 4
    rope = {"rope_type": "longrope", "short_factor": factors, "long_factor": factors}
    config = parse(rope_scaling=rope, original_max_position_embeddings=16)
    assert config.rope.original_context_tokens == 16


@pytest.mark.parametrize(
    ("rope", "context_tokens"),
    [
        ({"rope_type": "default"}, 64),
        ({"rope_type": "linear", "factor": 2.0}, 128),
        ({"rope_type": "dynamic", "factor": 4.0}, 256),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}, 128),
        ({"rope_type": "yarn", "factor": 2.0}, 128),
        ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}, 64),
    ],
)
def test_context(rope: dict[str, object], context_tokens: int) -> None:
    assert parse(rope_scaling=rope).context_tokens == context_tokens


def test_eos_ids_of_the_generation_config_come_first(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, "eos_token_id": 5}))
    assert load_decoder_config(tmp_path).eos_token_ids == (5,)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 8], "temperature": 0.6}))
    assert load_decoder_config(tmp_path).eos_token_ids == (7, 8)
    (tmp_path / "generation_config.json").write_text(json.dumps({"temperature": 0.6}))
    assert load_decoder_config(tmp_path).eos_token_ids == (5,)


def test_what_generate_would_apply_to_greedy_answers_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))

    def told(**generation: object) -> str | None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
        settings = load_decoder_config(tmp_path).greedy_settings
        return describe_unapplied(settings, sampling)

    sampling = SamplingParams()
    assert told(do_sample=True, temperature=0.7, top_k=20, repetition_penalty=1.0, num_beams=1) is None
    assert told(repetition_penalty=1.05, suppress_tokens=[1, 2], min_length=0, forced_eos_token_id=None) == (
        "the base's generation_config.json has repetition_penalty 1.05, suppress_tokens, which transformers "
        "applies and this run does not; --repetition-penalty asks for it"
    )
    sampling = SamplingParams(repetition_penalty=1.1)
    assert told(repetition_penalty=1.05) is None, "the run has its own"


def test_a_base_with_an_adapter_in_its_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(BaseModelError, match=r"holds an adapter_config\.json too"):
        load_decoder_config(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "gpt2"),
        ("model_type", None),
        ("hidden_act", "gelu"),
        ("quantization_config", {"bits": 4}),
        ("auto_map", {"AutoModel": "code.Model"}),
        ("architectures", ["LlamaForSequenceClassification"]),
        ("architectures", ["MistralForCausalLM"]),
        ("logits_scaling", 8.0),
        ("sliding_window", 16),
        ("layer_types", ["full_attention"] * 4),
        ("partial_rotary_factor", 0.5),
        ("rope_interleaved", True),
        ("hidden_size", -32),
        ("hidden_size", None),
        ("vocab_size", "128"),
        ("num_attention_heads", 0),
        ("num_key_value_heads", 3),
        ("head_dim", 7),
        ("torch_dtype", "float64"),
        ("eos_token_id", "</s>"),
        ("eos_token_id", True),
        ("rms_norm_eps", "small"),
        ("rope_theta", 0),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(key: str, value: object) -> None:
    message = refusal(**{key: value})
    assert key.removeprefix("torch_") in message


@pytest.mark.parametrize(
    ("rope", "named"),
    [
        ({"rope_type": "su", "factor": 2.0}, "'su'"),
        ({"rope_type": "default", "type": "mrope"}, "'mrope'"),
        ({"rope_type": "linear"}, "'factor'"),
        ({"rope_type": "linear", "factor": float("nan")}, "'factor'"),
        ({"rope_type": "linear", "factor": "2"}, "'factor'"),
        ({"rope_type": "linear", "factor": 2.0, "beta_fast": 32}, "'beta_fast'"),
        ({"rope_type": "default", "mrope_section": [1, 2]}, "'mrope_section'"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "'partial_rotary_factor'"),
        ({"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}, "'short_factor'"),
        ({"full_attention": {"rope_type": "default"}}, "'full_attention'"),
        (3, "not an object"),
    ],
)
def test_rope_settings_that_cannot_be_honoured_are_refused_by_name(rope: object, named: str) -> None:
    assert named in refusal(rope_scaling=rope)


def test_rope_settings_in_both_spellings_are_refused() -> None:
    rope = {"rope_type": "linear", "factor": 2.0}
    assert "'rope_parameters'" in refusal(rope_scaling=rope, rope_parameters=rope)


def test_sliding_layers_without_a_window_are_refused() -> None:
    kinds = ["sliding_attention"] * 4
    assert "'layer_types'" in refusal(model_type="qwen2", architectures=None, layer_types=kinds)


@pytest.mark.parametrize("kinds", [["full_attention"], ["full_attention"] * 3 + ["linear_attention"]])
def test_wrong_layer_types_are_refused(kinds: list[str]) -> None:
    refused = refusal(model_type="qwen3", architectures=None, layer_types=kinds)
    assert "layer_types" in refused


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe"])
def test_unreadable_files_are_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(BaseModelError, match=r"config\.json"):
        load_decoder_config(tmp_path)
    path.write_text(json.dumps(LLAMA))
    (tmp_path / "generation_config.json").write_bytes(content)
    with pytest.raises(BaseModelError, match=r"generation_config\.json"):
        load_decoder_config(tmp_path)


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=r"no config\.json"):
        load_decoder_config(tmp_path)
