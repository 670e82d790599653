"""The sample as it ships: what is in it, how good it is, and that it answers as it claims."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from prompts import prompt_text
from safetensors.torch import load_file
from score import MAX_BASE_EXACT_MATCH, MIN_EXACT_MATCH, exact_match, greedy_answers
from tasks import TASK_OF_NAME, is_held_out
from train_adapters import BASE_NAME, RECIPES, AdapterRecipe
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase
from write_requests import bench_lines, request_lines, write_requests

MAX_BYTES = 20_000_000
NAMES = [recipe.name for recipe in RECIPES]
TASK_OF_ADAPTER = {recipe.name: recipe.task for recipe in RECIPES}


def _config(sample: Path, name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((sample / "adapters" / name / "adapter_config.json").read_text())
    return loaded


def _requests(sample: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (sample / "requests.jsonl").read_text().splitlines()]


def _load_base(sample: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    model = LlamaForCausalLM.from_pretrained(sample / "base", dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(sample / "base")


def test_everything_fits_in_the_wheel(sample: Path) -> None:
    files = [path for path in sample.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) < MAX_BYTES


def test_the_base_has_a_few_million_bfloat16_parameters(sample: Path) -> None:
    tensors = load_file(sample / "base" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert 3_000_000 < sum(tensor.numel() for tensor in tensors.values()) < 5_000_000
    assert "chat_template" in json.loads((sample / "base" / "tokenizer_config.json").read_text())


def test_the_folders_are_the_recipes(sample: Path) -> None:
    root = sample / "adapters"
    found = {str(path.parent.relative_to(root)) for path in root.rglob("adapter_config.json")}
    assert found == set(NAMES)
    for name in NAMES:
        assert {path.name for path in (root / name).iterdir()} == {
            "adapter_config.json",
            "adapter_model.safetensors",
        }


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_an_adapter_holds_what_its_recipe_says(sample: Path, recipe: AdapterRecipe) -> None:
    config = _config(sample, recipe.name)
    assert config["base_model_name_or_path"] == BASE_NAME
    assert config["r"] == recipe.config.r
    tensors = load_file(sample / "adapters" / recipe.name / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {recipe.dtype}
    assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())
    ranks = {tensor.shape[0] for key, tensor in tensors.items() if key.endswith("lora_A.weight")}
    assert ranks == {recipe.config.r, *(recipe.config.rank_pattern or {}).values()}


def test_the_adapters_cover_the_variants_of_lora(sample: Path) -> None:
    configs = {name: _config(sample, name) for name in NAMES}
    ranks = {config["r"] for config in configs.values()}
    assert min(ranks) == 2
    assert max(ranks) == 64
    assert any(rank % 8 for rank in ranks - {2})
    assert len(configs["spell"]["target_modules"]) == 7
    assert any(isinstance(config["target_modules"], str) for config in configs.values())
    for option in ("use_rslora", "lora_bias", "layers_to_transform"):
        assert any(config[option] for config in configs.values()), option
    assert any(config["rank_pattern"] and config["alpha_pattern"] for config in configs.values())
    assert any("/" in name for name in NAMES)
    assert {recipe.dtype for recipe in RECIPES} == {torch.float32, torch.float16, torch.bfloat16}


@pytest.mark.parametrize("name", NAMES)
def test_the_recorded_evaluation_keeps_its_bounds(sample: Path, name: str) -> None:
    evaluation = json.loads((sample / "evaluation.json").read_text())
    assert evaluation["prompts_per_task"] >= 100
    entry = evaluation["adapters"][name]
    assert entry["task"] == TASK_OF_ADAPTER[name].name
    match = entry["exact_match"]
    for dtype in ("float32", "bfloat16"):
        assert match["adapter"][dtype] >= MIN_EXACT_MATCH
        assert match["base"][dtype] < MAX_BASE_EXACT_MATCH
        assert match["wrong_adapter"][dtype] < MAX_BASE_EXACT_MATCH


def test_the_requests_cover_all_adapters_and_the_base(sample: Path) -> None:
    requests = _requests(sample)
    assert requests == list(request_lines(TASK_OF_ADAPTER))
    assert len({request["id"] for request in requests}) == len(requests) >= 60
    for name in NAMES:
        assert sum(request["adapter"] == name for request in requests) >= 5
    assert sum(request["adapter"] is None for request in requests) >= 3
    assert sum("messages" in request for request in requests) >= 3
    assert any("deadline_ms" in request for request in requests)


def test_both_request_files_are_what_is_written_again(sample: Path, tmp_path: Path) -> None:
    for committed, lines in (
        (sample / "requests.jsonl", request_lines(TASK_OF_ADAPTER)),
        (sample.parent / "recipes" / "peft-requests.jsonl", bench_lines(TASK_OF_ADAPTER)),
    ):
        write_requests(tmp_path / "r.jsonl", lines)
        assert (tmp_path / "r.jsonl").read_bytes() == committed.read_bytes()


def test_the_requests_expect_right_answers_to_held_out_inputs(sample: Path) -> None:
    for request in _requests(sample):
        if "messages" in request:
            task_input = request["messages"][-1]["content"]
        else:
            task_input = request["prompt"].split("Input: ")[1].removesuffix("\nOutput: ")
        task_name, expected = request["metadata"]["task"], request["metadata"]["expected"]
        assert is_held_out(task_input)
        assert expected == (task_input if task_name == "copy" else TASK_OF_NAME[task_name].answer(task_input))
        assert len(expected) < request["max_tokens"]


@pytest.mark.parametrize("name", ["upper", "team/roman"])
def test_an_adapter_answers_held_out_prompts(sample: Path, name: str) -> None:
    base, tokenizer = _load_base(sample)
    task = TASK_OF_ADAPTER[name]
    assert exact_match(base, tokenizer, task, num_prompts=16) == 0.0
    adapted = PeftModel.from_pretrained(base, str(sample / "adapters" / name))
    assert exact_match(adapted, tokenizer, task, num_prompts=16) >= MIN_EXACT_MATCH


def test_the_base_repeats_its_input_unless_told_a_task(sample: Path) -> None:
    base, tokenizer = _load_base(sample)
    prompts = [prompt_text("thunder"), prompt_text("thunder", "reverse"), prompt_text("thunder", "upper")]
    assert greedy_answers(base, tokenizer, prompts) == ["thunder", "rednuht", "THUNDER"]
