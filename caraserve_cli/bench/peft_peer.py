"""transformers + PEFT on the work of one case of a benchmark of the engine: random weights, no files.

    if peft_is_present():
        run = measure_peft(
            around.base, request_adapters(case), prompt_tokens=case.prompt_tokens,
            output_tokens=case.output_tokens, num_steps=8, dtype=around.dtype, device=around.device,
        )
        run.prefill_ms, run.step_ms, run.num_steps, run.tokens_per_s

All requests are one batch, all there from the start: an adapter that all share is PEFT's active one, several
are a mixed batch (`adapter_names`), no adapter at all is transformers without PEFT, which need not be
installed then. It runs what its users run, `generate` with the KV cache and sdpa attention, timed after each
token; a token comes back to the host for `generate`'s own test of its end, so that the times are those of the
device. With 32 adapters a step takes about a second: only some are measured, in the middle of the answer,
and a whole answer's tokens a second follow from their median.

Nothing else may be on the device that needs the memory; what this takes is given back. Knows nothing of
CaraServe's own engine. peft itself, which only the extra `caraserve[test]` installs, is imported late.
"""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain, pairwise
from statistics import median
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from caraserve_cli.bench.bench_device import free_memory
from caraserve_cli.errors import DeviceMemoryError
from caraserve_cli.fleet.synthetic_adapter import SyntheticAdapter
from caraserve_cli.model.resolve import ResolvedBase
from caraserve_cli.model.shapes import KNOWN_BASES

if TYPE_CHECKING:
    from peft import PeftModel

# PEFT's own name for a row without an adapter.
_BASE_ROW = "__base__"
# Of the adapters, as `synthetic` makes them; transformers gives the base the same by itself.
_WEIGHT_STD = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class PeftRun:
    """What transformers + PEFT took.

    Attributes:
        output_tokens: of each request's whole answer, most of which was not made.
        prefill_ms: from the call of `generate` to the first token of every request.
        step_ms: median of the measured decoding steps; 0 where an answer has one token.
        num_steps: that were measured.
    """

    num_requests: int
    output_tokens: int
    prefill_ms: float
    step_ms: float
    num_steps: int

    @property
    def tokens_per_s(self) -> float:
        """Output tokens a second of whole answers, if every step took what the measured ones did."""
        total_ms = self.prefill_ms + (self.output_tokens - 1) * self.step_ms
        return self.num_requests * self.output_tokens / total_ms * 1e3

    @property
    def basis(self) -> str:
        """To be said beside `tokens_per_s`."""
        return f"from {self.num_steps} measured steps"


def peft_is_present() -> bool:
    """Whether cases with adapters can be measured."""
    return find_spec("peft") is not None


def make_hf_config(base: ResolvedBase) -> PretrainedConfig:
    """The base's config as transformers reads it, from the base's folder or its published keys."""
    if base.folder is not None:
        config: PretrainedConfig = AutoConfig.from_pretrained(base.folder)
        return config
    keys: Mapping[str, Any] = KNOWN_BASES[base.name.lower()].config
    return AutoConfig.for_model(**keys)


def measure_peft(
    base: ResolvedBase,
    adapters: Sequence[SyntheticAdapter | None],
    *,
    prompt_tokens: int,
    output_tokens: int,
    num_steps: int,
    dtype: torch.dtype,
    device: torch.device,
    seed: int = 0,
) -> PeftRun:
    """Measure one prefill of all requests, and some decoding steps, after a warm-up of both.

    Args:
        adapters: of each request; requests share the one they both name. None is the base alone.
        output_tokens: of every answer; the steps in its middle are measured, whose contexts are average.
        num_steps: to be measured, fewer where an answer has fewer.
        seed: of the weights and the prompts.

    Raises:
        ModuleNotFoundError: there is an adapter, and peft is not installed.
        DeviceMemoryError: the device's memory does not hold it.
    """
    run: PeftRun | None = None
    with suppress(torch.OutOfMemoryError):  # said below, where nothing holds the model any more
        run = _RandomPeft(base, adapters, dtype, device, seed).measure(
            prompt_tokens, output_tokens, min(num_steps, output_tokens - 1)
        )
    free_memory(device)
    if run is None:
        raise DeviceMemoryError(f"a batch of {len(adapters)} requests does not fit the device's memory")
    return run


class _RandomPeft:
    """A base and adapters with random weights, and the prompts of all requests."""

    def __init__(
        self,
        base: ResolvedBase,
        adapters: Sequence[SyntheticAdapter | None],
        dtype: torch.dtype,
        device: torch.device,
        seed: int,
    ) -> None:
        self._num_requests = len(adapters)
        self._vocab_size = base.config.shape.vocab_size
        self._prompts = torch.Generator().manual_seed(seed)
        self._device = device
        # PEFT's names become module names, which may hold neither dots nor slashes.
        names = {each: f"adapter{i}" for i, each in enumerate(dict.fromkeys(filter(None, adapters)))}
        self._row_names = [_BASE_ROW if each is None else names[each] for each in adapters]
        model: torch.nn.Module = _random_base(base, dtype, device, seed)
        if names:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about names inside the libraries
                model = _with_adapters(model, names, dtype, device, seed)
        self._generate_tokens = cast("Callable[..., torch.Tensor]", model.eval().generate)

    def measure(self, prompt_tokens: int, output_tokens: int, num_steps: int) -> PeftRun:
        """See `measure_peft`."""
        middle = prompt_tokens + (output_tokens - 1 - num_steps) // 2
        self._generate(prompt_tokens, 1 + min(num_steps, 1))
        (prefill_s,) = self._generate(prompt_tokens, 1)
        gc.collect()  # PEFT's thousands of modules are not searched for garbage on the clock
        step_s = self._generate(middle, 1 + num_steps)[1:]
        return PeftRun(
            num_requests=self._num_requests,
            output_tokens=output_tokens,
            prefill_ms=prefill_s * 1e3,
            step_ms=median(step_s) * 1e3 if step_s else 0.0,
            num_steps=len(step_s),
        )

    @torch.inference_mode()
    def _generate(self, prompt_tokens: int, num_tokens: int) -> list[float]:
        """The seconds that each of `num_tokens` tokens of every request took, after random prompts."""
        size = self._num_requests, prompt_tokens
        prompts = torch.randint(self._vocab_size, size, generator=self._prompts).to(self._device)
        is_mixed = len(set(self._row_names)) > 1
        clock = _TokenClock(self._device)
        self._generate_tokens(
            input_ids=prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=num_tokens,
            do_sample=False,
            pad_token_id=0,
            stopping_criteria=StoppingCriteriaList([clock]),
            **({"adapter_names": self._row_names} if is_mixed else {}),
        )
        seconds = [end - start for start, end in pairwise(clock.times_s)]
        assert len(seconds) == num_tokens, "something ended an answer"
        return seconds


class _TokenClock(StoppingCriteria):
    """Stops nothing: notes when `generate` has each token."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.times_s = [self._now_s()]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> torch.Tensor:
        self.times_s.append(self._now_s())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    def _now_s(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def _random_base(base: ResolvedBase, dtype: torch.dtype, device: torch.device, seed: int) -> PreTrainedModel:
    """A model made and filled on the device; transformers' own random weights do."""
    cuda_devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(cuda_devices), device:
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            make_hf_config(base), dtype=dtype, attn_implementation="sdpa"
        )
    # In place of one with the base's EOS tokens, which are ignored.
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    return model


def _with_adapters(
    model: torch.nn.Module,
    names: Mapping[SyntheticAdapter, str],
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
) -> PeftModel:
    """The model with adapters of random content, the first of them active.

    PEFT makes their modules without memory, which are then filled: it would fill them twice, on the host,
    and some versions of it in float32. Its time grows with the square of their number: for the q, k, v, o of
    32 layers, 32 adapters took 12 s and 96 took 150 s on one core of the 2-core machine.
    """
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer

    peft_model: PeftModel | None = None
    for adapter, name in names.items():
        config = LoraConfig(
            r=adapter.lora_rank,
            lora_alpha=adapter.lora_rank,
            target_modules=list(adapter.modules),
            task_type="CAUSAL_LM",
            inference_mode=True,
        )
        if peft_model is None:
            peft_model = get_peft_model(model, config, adapter_name=name, low_cpu_mem_usage=True)
        else:
            peft_model.add_adapter(name, config, low_cpu_mem_usage=True)
    assert peft_model is not None
    generator = torch.Generator(device).manual_seed(seed)
    for module in peft_model.modules():
        if isinstance(module, LoraLayer):
            for linear in chain(module.lora_A.values(), module.lora_B.values()):
                weight = torch.empty_like(cast("torch.Tensor", linear.weight), dtype=dtype, device=device)
                weight.normal_(std=_WEIGHT_STD, generator=generator)
                linear.weight = torch.nn.Parameter(weight, requires_grad=False)
    return peft_model
