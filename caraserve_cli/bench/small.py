"""A recipe of whatever kind cut down until a CPU does it in seconds: the embedded sample's shape in float32,
few requests, adapters and repeats. What it then gives says that the recipe runs, and nothing of speed, so
that nothing is required of it.

Knows what a recipe may become; measures nothing.
"""

from __future__ import annotations

import dataclasses
from typing import TypedDict, TypeVar

from caraserve_cli.bench.arrival_recipe import ArrivalCase, ArrivalRecipe, Cell, GridKeys
from caraserve_cli.bench.assist_recipe import AssistLimits, AssistRecipe
from caraserve_cli.bench.cluster_recipe import ClusterRecipe
from caraserve_cli.bench.driver_recipe import DriverRecipe
from caraserve_cli.bench.engine_case import EngineCase
from caraserve_cli.bench.kernel_cases import AttentionCase, FitCase, FormsCase, LoraCase, TimeLimits
from caraserve_cli.bench.kernel_recipe import KernelRecipe
from caraserve_cli.bench.paired_recipe import PairedRecipe
from caraserve_cli.bench.recipe import Recipe, WorkloadSpec
from caraserve_cli.bench.serving_recipe import ServingCase, ServingRecipe
from caraserve_cli.bench.simulator_recipe import SimulatorCase, SimulatorRecipe
from caraserve_cli.bench.slo_recipe import SloCase, SloRecipe
from caraserve_cli.bench.step_recipe import Measure, StepCase, StepRecipe
from caraserve_cli.bench.throughput_recipe import ThroughputCase, ThroughputRecipe
from caraserve_cli.fleet.options import DeviceName, DtypeName, ReplicaOptions
from caraserve_cli.job.sample import find_sample

SMALL_WORDS = (
    "Small: the recipe cut down to the embedded sample's shape in float32 on this CPU, with few requests, "
    "adapters and repeats, without emulated links, memory limits and peers that are slow to start. It says "
    "that the recipe runs; its figures say nothing of speed, and what the recipe requires is not judged."
)

# All chosen, not measured: each recipe is to take seconds.
_MOST_REQUESTS = 6
_PROMPT_TOKENS, _OUTPUT_TOKENS = 16, 4
_STEP_TOKENS = 64
_MOST_REPEATS = 2
_LEAST_RATE_PER_S = 50
_MOST_PROCESSES = 2
_CLUSTER_REQUESTS, _CLUSTER_SETTLING, _CLUSTER_ADAPTERS = 400, 50, 4000
_DRIVER_REQUESTS = 1000
_FIT_SIZES = 3
_CONTEXT_TOKENS = 64

_NO_LIMITS = TimeLimits(None, None)


class _Repeats(TypedDict):
    warmups: int
    repeats: int


def _once() -> _Repeats:
    return _Repeats(warmups=0, repeats=1)


class _Place(TypedDict):
    base: str
    device: DeviceName
    dtype: DtypeName


def _place() -> _Place:
    return _Place(base=str(find_sample().base), device="cpu", dtype="float32")


def _options(options: ReplicaOptions) -> ReplicaOptions:
    return dataclasses.replace(
        options,
        **_place(),
        tensor_parallel=min(options.tensor_parallel, _MOST_PROCESSES),
        lora_kernel="mbgmv",
        cpu_workers=None,
        gpu_memory=None,
        kv_memory="32MB",
        adapter_memory=None,
        host_adapter_memory="1GB",
        max_running=_MOST_REQUESTS,
        max_batch_tokens=_STEP_TOKENS,
        prefill_chunk_tokens=_STEP_TOKENS,
    )


_Case = TypeVar("_Case", bound=EngineCase)


def _case(case: _Case) -> _Case:
    """What all cases of the engine have in common."""
    num_requests = min(case.num_requests, _MOST_REQUESTS)
    num_adapters = min(case.num_adapters, num_requests)
    return dataclasses.replace(
        case,
        num_requests=num_requests,
        num_adapters=num_adapters,
        lora_ranks=case.lora_ranks[:num_adapters],
        prompt_tokens=min(case.prompt_tokens, _PROMPT_TOKENS),
        output_tokens=min(case.output_tokens, _OUTPUT_TOKENS),
        peft=False,
        options=_options(case.options),
    )


def small_serving(recipe: ServingRecipe) -> ServingRecipe:
    """Requests come faster, so that nobody waits for them."""
    cases = tuple(_serving_case(case) for case in recipe.cases)
    return dataclasses.replace(recipe, options=_options(recipe.options), cases=cases, **_once())


def _serving_case(case: ServingCase) -> ServingCase:
    rate_per_s = None if case.rate_per_s is None else max(case.rate_per_s, _LEAST_RATE_PER_S)
    return dataclasses.replace(_case(case), rate_per_s=rate_per_s, link_gbps=None, requirements=())


def small_slo(recipe: SloRecipe) -> SloRecipe:
    """At two rates."""
    cases = tuple(_slo_case(case) for case in recipe.cases)
    return dataclasses.replace(recipe, options=_options(recipe.options), cases=cases, **_once())


def _slo_case(case: SloCase) -> SloCase:
    rates_per_s = (_LEAST_RATE_PER_S, 2 * _LEAST_RATE_PER_S)
    return dataclasses.replace(_case(case), rates_per_s=rates_per_s, ratio_at_least=None)


def small_simulator(recipe: SimulatorRecipe) -> SimulatorRecipe:
    """At one rate; a profile of the sample's base must be there, as one of the recipe's must."""
    cases = tuple(_simulator_case(case) for case in recipe.cases)
    return dataclasses.replace(recipe, options=_options(recipe.options), cases=cases, **_once())


def _simulator_case(case: SimulatorCase) -> SimulatorCase:
    return dataclasses.replace(
        _case(case), rates_per_s=(_LEAST_RATE_PER_S,), link_gbps=None, within=None, attainment_within=None
    )


def small_steps(recipe: StepRecipe) -> StepRecipe:
    """A case that is measured without adapters keeps the one that it is compared with."""
    cases = tuple(_step_case(case) for case in recipe.cases)
    return dataclasses.replace(recipe, options=_options(recipe.options), cases=cases, **_once())


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
        max_running=min(_MOST_REQUESTS, num_tokens),
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
        **_once(),
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
        repeats=_MOST_REPEATS,
        auto_within=None,
    )


def _arrival_case(case: ArrivalCase) -> ArrivalCase:
    grid = GridKeys(num_decoding=2, decode_tokens=64, num_cold=2, arrival_tokens=2)
    lora_ranks = case.lora_ranks[:2]
    prompts = sorted({min(cell.prompt_tokens, _PROMPT_TOKENS) for cell in case.cells})
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


def small_assist(recipe: AssistRecipe) -> AssistRecipe:
    """Prompts and ranks stay: of the sample's shape they are quick."""
    cases = tuple(dataclasses.replace(case, limits=AssistLimits()) for case in recipe.cases)
    return dataclasses.replace(recipe, **_place(), cases=cases, cpu_workers=None, **_once())


def small_kernels(recipe: KernelRecipe) -> KernelRecipe:
    """On a CPU the operators are the plain ones of PyTorch."""
    return dataclasses.replace(
        recipe,
        **_place(),
        repeats=_MOST_REPEATS,
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
        num_requests=min(case.num_requests, _MOST_REQUESTS),
        context_tokens=min(case.context_tokens, _CONTEXT_TOKENS),
        limits=_NO_LIMITS,
    )


def _lora_case(case: LoraCase) -> LoraCase:
    num_adapters = min(case.num_adapters, _MOST_REQUESTS)
    tokens_per_adapter = min(case.num_tokens // case.num_adapters, 2)
    return dataclasses.replace(
        case, num_tokens=tokens_per_adapter * num_adapters, num_adapters=num_adapters, limits=_NO_LIMITS
    )


def _forms_case(case: FormsCase) -> FormsCase:
    # The last one may be the large one.
    adapter_ranks = (*case.adapter_ranks[:-1][: _MOST_REQUESTS - 1], case.adapter_ranks[-1])
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
    return dataclasses.replace(recipe, workload=workload, batch_size=_MOST_REQUESTS, repeats=1)


def _workload(workload: WorkloadSpec) -> WorkloadSpec:
    """The sample's own rows, some of them."""
    sample = find_sample()
    return dataclasses.replace(
        workload,
        base=str(sample.base),
        adapter_roots=(sample.adapters,),
        requests=sample.requests,
        limit=min(workload.limit or _MOST_REQUESTS, _MOST_REQUESTS),
        output_tokens=min(workload.output_tokens or _OUTPUT_TOKENS, _OUTPUT_TOKENS),
    )
