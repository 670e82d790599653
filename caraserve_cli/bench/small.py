"""A recipe of whatever kind cut down until a CPU does it in seconds: the embedded sample's shape in float32,
few requests, adapters and repeats. What it then gives says that the recipe runs, and nothing of speed, so
that nothing is required of it.

Knows what a recipe may become, those of the engine apart (`small_engine`); measures nothing.
"""

from __future__ import annotations

import dataclasses

from caraserve_cli.bench.assist_recipe import AssistLimits, AssistRecipe
from caraserve_cli.bench.cluster_recipe import ClusterRecipe
from caraserve_cli.bench.driver_recipe import DriverRecipe
from caraserve_cli.bench.kernel_cases import AttentionCase, FitCase, FormsCase, LoraCase, TimeLimits
from caraserve_cli.bench.kernel_recipe import KernelRecipe
from caraserve_cli.bench.paired_recipe import PairedRecipe
from caraserve_cli.bench.recipe import Recipe, WorkloadSpec
from caraserve_cli.bench.small_sizes import (
    MOST_REPEATS,
    MOST_REQUESTS,
    OUTPUT_TOKENS,
    once,
    small_place,
)
from caraserve_cli.job.sample import find_sample

SMALL_WORDS = (
    "Small: the recipe cut down to the embedded sample's shape in float32 on this CPU, with few requests, "
    "adapters and repeats, without emulated links, memory limits and peers that are slow to start. It says "
    "that the recipe runs; its figures say nothing of speed, and what the recipe requires is not judged."
)

# All chosen, not measured: each recipe is to take seconds.
_CLUSTER_REQUESTS, _CLUSTER_SETTLING, _CLUSTER_ADAPTERS = 400, 50, 4000
_DRIVER_REQUESTS = 1000
_FIT_SIZES = 3
_CONTEXT_TOKENS = 64

_NO_LIMITS = TimeLimits(None, None)


def small_assist(recipe: AssistRecipe) -> AssistRecipe:
    """Prompts and ranks stay: of the sample's shape they are quick."""
    cases = tuple(dataclasses.replace(case, limits=AssistLimits()) for case in recipe.cases)
    return dataclasses.replace(recipe, **small_place(), cases=cases, cpu_workers=None, **once())


def small_kernels(recipe: KernelRecipe) -> KernelRecipe:
    """On a CPU the operators are the plain ones of PyTorch."""
    return dataclasses.replace(
        recipe,
        **small_place(),
        repeats=MOST_REPEATS,
        products=tuple(dataclasses.replace(case, limits=_NO_LIMITS) for case in recipe.products),
        attention=tuple(map(_attention_case, recipe.attention)),
        lora=tuple(map(_lora_case, recipe.lora)),
        forms=tuple(map(_forms_case, recipe.forms)),
        fit=tuple(map(_fit_case, recipe.fit)),
        loads=tuple(dataclasses.replace(case, layer_at_most=None) for case in recipe.loads),
    )


def _attention_case(case: AttentionCase) -> AttentionCase:
    return dataclasses.replace(
        case,
        num_requests=min(case.num_requests, MOST_REQUESTS),
        context_tokens=min(case.context_tokens, _CONTEXT_TOKENS),
        limits=_NO_LIMITS,
    )


def _lora_case(case: LoraCase) -> LoraCase:
    num_adapters = min(case.num_adapters, MOST_REQUESTS)
    tokens_per_adapter = min(case.num_tokens // case.num_adapters, 2)
    return dataclasses.replace(
        case, num_tokens=tokens_per_adapter * num_adapters, num_adapters=num_adapters, limits=_NO_LIMITS
    )


def _forms_case(case: FormsCase) -> FormsCase:
    # The last one may be the large one.
    adapter_ranks = (*case.adapter_ranks[:-1][: MOST_REQUESTS - 1], case.adapter_ranks[-1])
    return dataclasses.replace(case, adapter_ranks=adapter_ranks, bgmv_at_least=None, mbgmv_at_most=None)


def _fit_case(case: FitCase) -> FitCase:
    return dataclasses.replace(
        case,
        batch_sizes=case.batch_sizes[:_FIT_SIZES],
        largest_ranks=case.largest_ranks[:_FIT_SIZES],
        num_layers=1,
        r2_at_least=None,
    )


def small_cluster(recipe: ClusterRecipe) -> ClusterRecipe:
    """The fleet stays; few requests and adapters, at the SLO's load alone."""
    mix = recipe.workload.adapters
    mix = dataclasses.replace(mix, num_adapters=min(mix.num_adapters, _CLUSTER_ADAPTERS))
    return dataclasses.replace(
        recipe,
        workload=dataclasses.replace(recipe.workload, adapters=mix),
        num_requests=min(recipe.num_requests, _CLUSTER_REQUESTS),
        num_settling=min(recipe.num_settling, _CLUSTER_SETTLING),
        rates_per_s=(recipe.slo.rate_per_s,),
        further_factor=None,
        requirements=(),
    )


def small_driver(recipe: DriverRecipe) -> DriverRecipe:
    """Fewer requests; there is no base in it."""
    return dataclasses.replace(
        recipe, num_requests=_DRIVER_REQUESTS, at_least=dict.fromkeys(recipe.at_least), repeats=1
    )


def small_comparison(recipe: Recipe) -> Recipe:
    """The first requests."""
    return dataclasses.replace(
        recipe,
        device="cpu",
        dtype="float32",
        workload=_workload(recipe.workload),
        warmups=0,
        repeats=1,
        requirements=(),
    )


def small_paired(recipe: PairedRecipe) -> PairedRecipe:
    """A small batch, once."""
    workload = _workload(recipe.workload)
    return dataclasses.replace(recipe, workload=workload, batch_size=MOST_REQUESTS, repeats=1)


def _workload(workload: WorkloadSpec) -> WorkloadSpec:
    """The sample's own rows, some of them."""
    sample = find_sample()
    return dataclasses.replace(
        workload,
        base=str(sample.base),
        adapter_roots=(sample.adapters,),
        requests=sample.requests,
        limit=min(workload.limit or MOST_REQUESTS, MOST_REQUESTS),
        output_tokens=min(workload.output_tokens or OUTPUT_TOKENS, OUTPUT_TOKENS),
    )
