"""One benchmark of operators from recipe to result. Knows no terminal."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from caraserve_cli import __version__
from caraserve_cli.adapters.packing import MAX_LORA_RANK
from caraserve_cli.bench.bench_device import bench_device, free_memory
from caraserve_cli.bench.facts import code_commit, installed_versions
from caraserve_cli.bench.floor import measure_speed
from caraserve_cli.bench.kernel_attention import measure_attention
from caraserve_cli.bench.kernel_bench import KernelBench
from caraserve_cli.bench.kernel_cases import Phase
from caraserve_cli.bench.kernel_fit import measure_fit
from caraserve_cli.bench.kernel_loads import measure_loads
from caraserve_cli.bench.kernel_lora import measure_forms, measure_lora
from caraserve_cli.bench.kernel_products import measure_products
from caraserve_cli.bench.kernel_recipe import KernelRecipe
from caraserve_cli.bench.kernel_result import CaseResult, KernelFacts, KernelResult
from caraserve_cli.bench.kernel_timer import KernelTimer
from caraserve_cli.errors import OptionError
from caraserve_cli.fleet.machine import choose_dtype, describe_device
from caraserve_cli.model.resolve import resolve_base

# Told after each case: its section, and what was measured.
OnCase = Callable[[str, CaseResult], None]

_PACKAGES = ("torch", "triton", "peft", "flashinfer-python")

_Case = TypeVar("_Case")
_Result = TypeVar("_Result", bound=CaseResult)


@torch.inference_mode()
def run_kernels(recipe: KernelRecipe, on_case: OnCase) -> KernelResult:
    """Measure the device's speeds and then every case.

    Raises:
        OptionError: the recipe asks for what this machine does not have.
        InputError: the base cannot be had.
    """
    began_s, load_average = time.perf_counter(), os.getloadavg()[0]
    bench = _prepare(recipe)

    def measured(
        section: str, cases: Sequence[_Case], measure: Callable[[KernelBench, _Case], _Result]
    ) -> tuple[_Result, ...]:
        results: list[_Result] = []
        for case in cases:
            results.append(measure(bench, case))
            free_memory(bench.device)
            on_case(section, results[-1])
        return tuple(results)

    decode_tokens, prefill_tokens = most_tokens(recipe, Phase.DECODE), most_tokens(recipe, Phase.PREFILL)
    most = {Phase.DECODE: decode_tokens, Phase.PREFILL: prefill_tokens}
    products = measured("products", recipe.products, measure_products)
    attention = measured("attention", recipe.attention, measure_attention)
    lora = measured("lora", recipe.lora, lambda bench, case: measure_lora(bench, case, most[case.phase]))
    forms = measured("forms", recipe.forms, lambda bench, case: measure_forms(bench, case, decode_tokens))
    fit = measured("fit", recipe.fit, lambda bench, case: measure_fit(bench, case, decode_tokens))
    loads = measured("loads", recipe.loads, measure_loads)
    return KernelResult(
        facts=_facts(recipe, bench, load_average, time.perf_counter() - began_s),
        products=products,
        attention=attention,
        lora=lora,
        forms=forms,
        fit=fit,
        loads=loads,
    )


def most_tokens(recipe: KernelRecipe, phase: Phase) -> int:
    """The most tokens that a step with adapters has in any section."""
    num_tokens = [case.num_tokens for case in recipe.lora if case.phase is phase]
    if phase is Phase.DECODE:
        num_tokens += [len(case.adapter_ranks) for case in recipe.forms]
        num_tokens += [batch_size for case in recipe.fit for batch_size in case.batch_sizes]
    return max(num_tokens, default=1)


def _prepare(recipe: KernelRecipe) -> KernelBench:
    device = bench_device(recipe.name, recipe.device)
    most_rank = max(_lora_ranks(recipe), default=0)
    if most_rank > MAX_LORA_RANK:
        raise OptionError(
            f"recipe '{recipe.name}' has an adapter of rank {most_rank}, and ranks up to {MAX_LORA_RANK} "
            "are served on a GPU"
        )
    config = resolve_base(recipe.base, "random").config
    dtype = choose_dtype(recipe.dtype, device, config.dtype)
    return KernelBench(
        shape=config.shape,
        modules=recipe.modules,
        device=device,
        dtype=dtype,
        speed=measure_speed(device, dtype),
        timer=KernelTimer(device, recipe.repeats),
    )


def _lora_ranks(recipe: KernelRecipe) -> list[int]:
    return [
        *(lora_rank for case in recipe.lora for lora_rank in case.lora_ranks),
        *(lora_rank for case in recipe.forms for lora_rank in case.adapter_ranks),
        *(lora_rank for case in recipe.fit for lora_rank in case.largest_ranks),
        *(case.lora_rank for case in recipe.loads),
    ]


def _facts(recipe: KernelRecipe, bench: KernelBench, load_average: float, seconds: float) -> KernelFacts:
    return KernelFacts(
        recipe=recipe.name,
        description=recipe.description,
        caraserve_version=__version__,
        commit=code_commit(),
        versions=installed_versions(_PACKAGES),
        device=describe_device(bench.device),
        num_cores=os.cpu_count() or 1,
        load_average=round(load_average, 2),
        base=recipe.base,
        dtype=str(bench.dtype).removeprefix("torch."),
        modules=recipe.modules,
        most_repeats=recipe.repeats,
        copy_bytes_per_s=bench.speed.bytes_per_s,
        product_flops_per_s=bench.speed.flops_per_s,
        seconds=seconds,
    )
