from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from caraserve_cli.errors import BaseModelError
from caraserve_cli.model.checkpoint import load_decoder, random_decoder
from caraserve_cli.model.config import load_decoder_config
from caraserve_cli.model.decoder import Decoder
from tests.model.tiny import CPU, logits_of, some_token_ids, write_checkpoint

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Decoder:
    return load_decoder(folder, load_decoder_config(folder), dtype, CPU)


def refusal(folder: Path) -> str:
    with pytest.raises(BaseModelError) as caught:
        load(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


def change_weights(folder: Path, changes: dict[str, Tensor | None]) -> None:
    """Replaces, adds and (None) removes tensors of a single-file checkpoint."""
    tensors: dict[str, Tensor | None] = {**load_file(folder / WEIGHTS), **changes}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, folder / WEIGHTS)


def test_sharded_is_single(tmp_path: Path) -> None:
    single, sharded = tmp_path / "single", tmp_path / "sharded"
    write_checkpoint(single)
    write_checkpoint(sharded, max_shard_size="20KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    token_ids = some_token_ids(10)
    assert torch.equal(logits_of(load(single), token_ids), logits_of(load(sharded), token_ids))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_files_loaded_as_float32_are_transformers(tmp_path: Path, dtype: torch.dtype) -> None:
    model = write_checkpoint(tmp_path, "qwen2", dtype=dtype).float()
    token_ids = some_token_ids(10)
    with torch.inference_mode():
        expected = model(token_ids[None]).logits[0]
    decoder = load(tmp_path)
    assert decoder.config.dtype == dtype
    assert decoder.dtype == torch.float32
    torch.testing.assert_close(logits_of(decoder, token_ids), expected, atol=1e-4, rtol=0)


def test_tied_head_is_the_embedding_and_counted_once(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "llama-gqa-tied")
    decoder = load(tmp_path)
    assert decoder.weights.lm_head is decoder.weights.embedding
    stored = sum(tensor.nbytes for tensor in load_file(tmp_path / WEIGHTS).values())
    assert decoder.weights.num_bytes == stored


def test_a_second_copy_of_the_tied_head_is_fine_and_a_different_one_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "llama-gqa-tied")
    embedding = load_file(tmp_path / WEIGHTS)["model.embed_tokens.weight"]
    change_weights(tmp_path, {"lm_head.weight": embedding.clone()})
    load(tmp_path)
    change_weights(tmp_path, {"lm_head.weight": embedding + 1})
    assert "'lm_head.weight' differs" in refusal(tmp_path)


def test_old_rotary_buffers_are_ignored(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    change_weights(tmp_path, {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)})
    load(tmp_path)


@pytest.mark.parametrize(
    ("name", "tensor", "said"),
    [
        ("model.norm.weight", None, "lack 'model.norm.weight'"),
        ("lm_head.weight", None, "lack 'lm_head.weight'"),
        ("model.layers.0.self_attn.q_proj.bias", torch.zeros(32), "q_proj.bias"),
        ("model.layers.2.mlp.up_proj.weight", torch.zeros(48, 32), "layers.2.mlp.up_proj"),
        ("model.layers.1.mlp.up_proj.weight", torch.zeros(47, 32), "has shape [47, 32]"),
        ("model.norm.weight", torch.ones(1), "has shape [1]"),
        ("model.norm.weight", torch.ones(32, dtype=torch.float8_e4m3fn), "float8_e4m3fn"),
        ("model.norm.weight", torch.ones(32, dtype=torch.int8), "int8"),
    ],
)
def test_wrong_tensors_are_named(tmp_path: Path, name: str, tensor: Tensor | None, said: str) -> None:
    write_checkpoint(tmp_path)
    change_weights(tmp_path, {name: tensor})
    message = refusal(tmp_path)
    assert said in message
    assert name in message


def test_many_missing_tensors_make_a_short_message(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    save_file({}, tmp_path / WEIGHTS)
    assert "and 18 more" in refusal(tmp_path)


@pytest.mark.parametrize("kept_bytes", [0, 4, 100, 20_000])
def test_truncated_files_are_named(tmp_path: Path, kept_bytes: int) -> None:
    write_checkpoint(tmp_path)
    path = tmp_path / WEIGHTS
    path.write_bytes(path.read_bytes()[:kept_bytes])
    assert str(path) in refusal(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, max_shard_size="20KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.unlink()
    assert shard.name in refusal(tmp_path)


@pytest.mark.parametrize(
    "index", ["{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": "../a.safetensors"}}']
)
def test_a_broken_index_is_refused(tmp_path: Path, index: str) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    (tmp_path / INDEX).write_text(index)
    assert INDEX in refusal(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    (tmp_path / WEIGHTS).unlink()
    save_file(tensors, tmp_path / "a.safetensors")
    save_file({"model.norm.weight": tensors["model.norm.weight"]}, tmp_path / "b.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}))
    assert "'model.norm.weight'" in refusal(tmp_path)


def test_pickled_weights_are_refused_with_the_way_out(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / WEIGHTS).rename(tmp_path / "pytorch_model.bin")
    assert "convert them to safetensors" in refusal(tmp_path)
    (tmp_path / "pytorch_model.bin").unlink()
    assert "--weights random" in refusal(tmp_path)


def test_random_weights_depend_on_the_seed_alone(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "qwen3")
    config, token_ids = load_decoder_config(tmp_path), some_token_ids(5)
    first, again, other = (
        logits_of(random_decoder(config, torch.float32, CPU, seed), token_ids) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.isfinite().all()
