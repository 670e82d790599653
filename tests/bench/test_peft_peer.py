"""transformers + PEFT do the work of a case: its sizes, its adapters, steps in the middle of its answers."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import Linear
from transformers import LlamaForCausalLM, PretrainedConfig

from caraserve_cli.bench import peft_peer
from caraserve_cli.bench.peft_peer import PeftRun, make_hf_config, measure_peft, peft_is_present
from caraserve_cli.errors import DeviceMemoryError
from caraserve_cli.fleet.synthetic_adapter import SyntheticAdapter
from caraserve_cli.model.resolve import ResolvedBase, resolve_base
from caraserve_cli.model.shapes import KNOWN_BASES
from tests.adapters.bases import tiny_llama

CPU = torch.device("cpu")
SMALL = SyntheticAdapter(2, ("q_proj", "v_proj"), 0)
TWIN = SyntheticAdapter(2, ("q_proj", "v_proj"), 1)
LARGE = SyntheticAdapter(5, ("q_proj", "o_proj", "down_proj"), 0)


@pytest.fixture
def base(tmp_path: Path) -> ResolvedBase:
    """2 layers; every token would end an answer."""
    config = tiny_llama().config
    config.eos_token_id = list(range(config.vocab_size))
    config.save_pretrained(tmp_path)
    return resolve_base(str(tmp_path), "random")


@dataclass(frozen=True)
class Call:
    """One call of a linear module that adapters change."""

    num_tokens: int
    adapter_names: Sequence[str] | None
    active: Sequence[str]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """The calls of the first layer's q_proj."""
    noted: list[Call] = []
    seen: list[weakref.ref[Linear]] = []
    forward: Callable[..., torch.Tensor] = Linear.forward

    def note(self: Linear, x: torch.Tensor, **kwargs: Sequence[str]) -> torch.Tensor:
        if not seen:
            seen.append(weakref.ref(self))
        if seen[0]() is self:
            noted.append(Call(x.shape[1], kwargs.get("adapter_names"), self.active_adapters))
        return forward(self, x, **kwargs)

    monkeypatch.setattr(Linear, "forward", note)
    return noted


def measure(
    base: ResolvedBase,
    adapters: Sequence[SyntheticAdapter | None],
    *,
    output_tokens: int = 12,
    dtype: torch.dtype = torch.float32,
) -> PeftRun:
    return measure_peft(
        base,
        adapters,
        prompt_tokens=9,
        output_tokens=output_tokens,
        num_steps=3,
        dtype=dtype,
        device=CPU,
    )


def test_tokens_a_second_are_those_of_the_whole_answer() -> None:
    run = PeftRun(num_requests=4, output_tokens=10, prefill_ms=100, step_ms=50, num_steps=3)
    assert run.tokens_per_s == pytest.approx(40 / 0.55)
    assert run.basis == "from 3 measured steps"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_different_adapters_are_one_mixed_batch(
    base: ResolvedBase, calls: list[Call], dtype: torch.dtype
) -> None:
    run = measure(base, [SMALL, None, LARGE, TWIN, SMALL], dtype=dtype)
    assert (run.num_requests, run.output_tokens, run.num_steps) == (5, 12, 3)
    assert run.prefill_ms > 0
    assert run.step_ms > 0
    names = ["adapter0", "__base__", "adapter1", "adapter2", "adapter0"]
    assert all(call.adapter_names == names for call in calls)
    # Warm-up; prefill; then of 11 steps 4 before and 4 after the measured ones.
    assert [call.num_tokens for call in calls] == [9, 1, 9, 13, 1, 1, 1]


def test_one_adapter_for_all_is_the_active_one(base: ResolvedBase, calls: list[Call]) -> None:
    measure(base, [LARGE, LARGE])
    assert {(call.adapter_names, tuple(call.active)) for call in calls} == {(None, ("adapter0",))}


def test_no_adapter_needs_no_peft(
    base: ResolvedBase, calls: list[Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peft_peer, "_with_adapters", None)
    assert measure(base, [None, None]).step_ms > 0
    assert not calls


@pytest.mark.parametrize(("output_tokens", "num_steps"), [(1, 0), (2, 1), (4, 3)])
def test_short_answers_have_few_steps(base: ResolvedBase, output_tokens: int, num_steps: int) -> None:
    run = measure(base, [None, None], output_tokens=output_tokens)
    assert run.num_steps == num_steps
    if not num_steps:
        assert run.step_ms == 0
        assert run.tokens_per_s == pytest.approx(2 / run.prefill_ms * 1e3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_have_their_sizes_and_random_content(base: ResolvedBase, dtype: torch.dtype) -> None:
    model = _made(base, dtype)
    weights = {
        name.removeprefix("base_model.model.model.layers."): weight
        for name, weight in model.named_parameters()
        if "lora" in name
    }
    assert len(weights) == 2 * 2 * (2 + 3)
    shape = base.config.shape
    for layer in range(shape.num_layers):
        for adapter, name in ((SMALL, "x"), (LARGE, "y")):
            for module in adapter.modules:
                in_width, out_width = shape.module_shape(module)
                path = f"{layer}.{'mlp' if module == 'down_proj' else 'self_attn'}.{module}"
                assert weights[f"{path}.lora_A.{name}.weight"].shape == (adapter.lora_rank, in_width)
                assert weights[f"{path}.lora_B.{name}.weight"].shape == (out_width, adapter.lora_rank)
    for weight in model.parameters():
        assert (weight.dtype, weight.device) == (dtype, CPU)
    for weight in weights.values():
        assert 0.005 < weight.float().std() < 0.05
        assert not weight.requires_grad
    assert torch.equal(
        next(iter(weights.values())),
        next(weight for name, weight in _made(base, dtype).named_parameters() if "lora" in name),
    ), "the same seed, the same content"


def _made(base: ResolvedBase, dtype: torch.dtype) -> PeftModel:
    model = peft_peer._random_base(base, dtype, CPU, seed=1)
    return peft_peer._with_adapters(model, {SMALL: "x", LARGE: "y"}, dtype, CPU, seed=1)


def test_a_random_base_leaves_other_random_numbers_alone(base: ResolvedBase) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    model = peft_peer._random_base(base, torch.bfloat16, CPU, seed=1)
    assert torch.equal(torch.rand(3), expected)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("fits", [True, False])
def test_the_memory_is_given_back(base: ResolvedBase, monkeypatch: pytest.MonkeyPatch, fits: bool) -> None:
    made: list[weakref.ref[LlamaForCausalLM]] = []
    generate: Callable[..., torch.Tensor] = LlamaForCausalLM.generate

    def note(self: LlamaForCausalLM, *args: object, **kwargs: object) -> torch.Tensor:
        made.append(weakref.ref(self))
        if not fits:
            raise torch.OutOfMemoryError("out of memory")
        return generate(self, *args, **kwargs)

    monkeypatch.setattr(LlamaForCausalLM, "generate", note)
    gc.disable()  # so that only the code under test collects
    try:
        if fits:
            measure(base, [SMALL, LARGE])
        else:
            with pytest.raises(DeviceMemoryError, match=r"a batch of 2 requests does not fit"):
                measure(base, [SMALL, LARGE])
        assert {model() for model in made} == {None}
    finally:
        gc.enable()


@pytest.mark.parametrize("name", KNOWN_BASES)
def test_a_short_name_is_the_same_base(name: str) -> None:
    base = resolve_base(name, "random")
    config = make_hf_config(base)
    config.standardize_rope_params()
    shape = base.config.shape
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (
        shape.num_layers,
        shape.hidden_size,
        shape.num_heads,
    )
    assert (config.num_key_value_heads, config.intermediate_size, config.vocab_size) == (
        shape.num_kv_heads,
        shape.intermediate_size,
        shape.vocab_size,
    )
    assert config.model_type == base.config.model_type
    assert config.rope_parameters == base.config.rope.parameters
    assert config.tie_word_embeddings == base.config.tie_word_embeddings
    assert config.rms_norm_eps == base.config.rms_norm_eps


def test_a_folder_is_read_by_transformers(base: ResolvedBase) -> None:
    assert base.folder is not None
    config: PretrainedConfig = make_hf_config(base)
    assert config.hidden_size == json.loads((base.folder / "config.json").read_text())["hidden_size"]


@pytest.mark.parametrize("present", [True, False])
def test_it_is_known_whether_peft_is_there(monkeypatch: pytest.MonkeyPatch, present: bool) -> None:
    monkeypatch.setattr(peft_peer, "find_spec", lambda name: object() if present else None)
    assert peft_is_present() is present
