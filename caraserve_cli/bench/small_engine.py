"""Recipes of the engine cut down: a replica of the embedded sample's base, few requests and adapters, and no
links, peers or limits.
"""

from __future__ import annotations

import dataclasses
from typing import TypeVar

from caraserve_cli.bench.arrival_recipe import ArrivalCase, ArrivalRecipe, Cell, GridKeys
from caraserve_cli.bench.engine_case import EngineCase
from caraserve_cli.bench.serving_recipe import ServingCase, ServingRecipe
from caraserve_cli.bench.simulator_recipe import SimulatorCase, SimulatorRecipe
from caraserve_cli.bench.slo_recipe import SloCase, SloRecipe
from caraserve_cli.bench.small_sizes import (
    MOST_REPEATS,
    MOST_REQUESTS,
    OUTPUT_TOKENS,
    PROMPT_TOKENS,
    once,
    small_place,
)
from caraserve_cli.bench.step_recipe import Measure, StepCase, StepRecipe
from caraserve_cli.bench.throughput_recipe import ThroughputCase, ThroughputRecipe
from caraserve_cli.fleet.options import ReplicaOptions

# All chosen, not measured: each recipe is to take seconds.
_STEP_TOKENS = 64
_LEAST_RATE_PER_S = 50
_MOST_PROCESSES = 2


def _options(options: ReplicaOptions) -> ReplicaOptions:
    return dataclasses.replace(
        options,
        **small_place(),
        tensor_parallel=min(options.tensor_parallel, _MOST_PROCESSES),
        lora_kernel="mbgmv",
        cpu_workers=None,
        gpu_memory=None,
        kv_memory="32MB",
        adapter_memory=None,
        host_adapter_memory="1GB",
        max_running=MOST_REQUESTS,
        max_batch_tokens=_STEP_TOKENS,
        prefill_chunk_tokens=_STEP_TOKENS,
    )


_Case = TypeVar("_Case", bound=EngineCase)


def _case(case: _Case) -> _Case:
    """What all cases of the engine have in common."""
    num_requests = min(case.num_requests, MOST_REQUESTS)
    num_adapters = min(case.num_adapters, num_requests)
    return dataclasses.replace(
        case,
        num_requests=num_requests,
        num_adapters=num_adapters,
        lora_ranks=case.lora_ranks[:num_adapters],
        prompt_tokens=min(case.prompt_tokens, PROMPT_TOKENS),
        output_tokens=min(case.output_tokens, OUTPUT_TOKENS),
        peft=False,
        options=_options(case.options),
    )


def small_serving(recipe: ServingRecipe) -> ServingRecipe:
    """Requests come faster, so that nobody waits for them."""
    cases = tuple(_serving_case(case) for case in recipe.cases)
    return dataclasses.replace(recipe, options=_options(recipe.options), cases=cases, **once())


def _serving_case(case: ServingCase) -> ServingCase:
    rate_per_s = None if case.rate_per_s is None else max(case.rate_per_s, _LEAST_RATE_PER_S)
    return dataclasses.replace(_case(case), rate_per_s=rate_per_s, link_gbps=None, requirements=())


def small_slo(recipe: SloRecipe) -> SloRecipe:
    """At two rates."""
    cases = tuple(_slo_case(case) for case in recipe.cases)
    return dataclasses.replace(recipe, options=_options(recipe.options), cases=cases, **once())


def _slo_case(case: SloCase) -> SloCase:
    rates_per_s = (_LEAST_RATE_PER_S, 2 * _LEAST_RATE_PER_S)
    return dataclasses.replace(_case(case), rates_per_s=rates_per_s, ratio_at_least=None)


def small_simulator(recipe: SimulatorRecipe) -> SimulatorRecipe:
    """At one rate; a profile of the sample's base must be there, as one of the recipe's must."""
    cases = tuple(_simulator_case(case) for case in recipe.cases)
    return dataclasses.replace(recipe, options=_options(recipe.options), cases=cases, **once())


def _simulator_case(case: SimulatorCase) -> SimulatorCase:
    return dataclasses.replace(
        _case(case), rates_per_s=(_LEAST_RATE_PER_S,), link_gbps=None, within=None, attainment_within=None
    )


def small_steps(recipe: StepRecipe) -> StepRecipe:
    """A case that is measured without adapters keeps the one that it is compared with."""
    cases = tuple(_step_case(case) for case in recipe.cases)
    return dataclasses.replace(recipe, options=_options(recipe.options), cases=cases, **once())


def _step_case(case: StepCase) -> StepCase:
    small = dataclasses.replace(
        _case(case),
        at_most=None,
        lora_at_most=None,
        lora_share_at_most=None,
        rate_at_least=None,
        is_timed=False,
    )
    if small.measure is Measure.DECODE:
        return small
    # A step that is measured is full.
    num_tokens = min(_STEP_TOKENS, small.num_requests * small.prompt_tokens)
    options = dataclasses.replace(
        small.options,
        max_running=min(MOST_REQUESTS, num_tokens),
        max_batch_tokens=num_tokens,
        prefill_chunk_tokens=num_tokens,
    )
    return dataclasses.replace(small, options=options)


def small_throughput(recipe: ThroughputRecipe) -> ThroughputRecipe:
    """All cases on one replica."""
    cases = tuple(_throughput_case(case) for case in recipe.cases)
    return dataclasses.replace(
        recipe,
        options=_options(recipe.options),
        cases=cases,
        prompt_tokens=cases[0].prompt_tokens,
        output_tokens=cases[0].output_tokens,
        **once(),
    )


def _throughput_case(case: ThroughputCase) -> ThroughputCase:
    return dataclasses.replace(_case(case), vllm=False, at_least=None)


def small_arrivals(recipe: ArrivalRecipe) -> ArrivalRecipe:
    """One case: without emulated links all are the same."""
    return dataclasses.replace(
        recipe,
        options=_options(recipe.options),
        cases=(_arrival_case(recipe.cases[0]),),
        warmups=0,
        repeats=MOST_REPEATS,
        auto_within=None,
    )


def _arrival_case(case: ArrivalCase) -> ArrivalCase:
    grid = GridKeys(num_decoding=2, decode_tokens=64, num_cold=2, arrival_tokens=2)
    lora_ranks = case.lora_ranks[:2]
    prompts = sorted({min(cell.prompt_tokens, PROMPT_TOKENS) for cell in case.cells})
    return dataclasses.replace(
        case,
        num_requests=grid.num_decoding + 1,
        num_adapters=(grid.num_decoding + grid.num_cold) * len(lora_ranks),
        lora_ranks=lora_ranks,
        prompt_tokens=max(prompts),
        output_tokens=grid.decode_tokens,
        options=_options(case.options),
        cells=tuple(Cell(tokens, lora_rank) for lora_rank in lora_ranks for tokens in prompts),
        grid=grid,
        link_gbps=None,
    )
