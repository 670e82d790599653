"""One benchmark of CPU workers from recipe to result. Knows no terminal."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping

import torch

from caraserve_cli import __version__
from caraserve_cli.adapters.packing import MAX_LORA_RANK
from caraserve_cli.bench.assist_bench import AssistBench, AssistSetup, open_bench
from caraserve_cli.bench.assist_prefill import Prefill, Way, run_way
from caraserve_cli.bench.assist_recipe import AssistCase, AssistRecipe
from caraserve_cli.bench.assist_result import AssistCaseResult, AssistFacts, AssistResult, AssistTimes
from caraserve_cli.bench.assist_torch import TorchPrefill, measure_peak, torch_threads
from caraserve_cli.bench.assist_trace import trace_prefill
from caraserve_cli.bench.bench_device import bench_device, free_memory
from caraserve_cli.bench.comparison import Spread
from caraserve_cli.bench.facts import code_commit, installed_versions
from caraserve_cli.coldstart.cpu_lora import choose_compute_dtype
from caraserve_cli.errors import OptionError
from caraserve_cli.fleet.cold_start import (
    MAX_ASSISTED_TOKENS,
    TOKENS_PER_WORKER,
    choose_cores,
    find_profile,
    make_break_even,
)
from caraserve_cli.fleet.kernel_place import TOLERANCES
from caraserve_cli.fleet.machine import choose_dtype, describe_device
from caraserve_cli.fleet.options import ReplicaOptions
from caraserve_cli.model.resolve import resolve_base

# Told after each case.
OnCase = Callable[[AssistCaseResult], None]

_PACKAGES = ("torch", "triton")
# Ways of computing a prefill.
_SYNC_FREE, _REPLAYED, _SYNCHRONISED, _WORKERS, _TORCH, _TORCH_ALONE = (
    "sync-free",
    "replayed",
    "synchronised",
    "workers",
    "torch",
    "torch alone",
)
_BY_TORCH = (_TORCH, _TORCH_ALONE)
_MOST_WAYS = 6


@torch.inference_mode()
def run_assist(recipe: AssistRecipe, on_case: OnCase) -> AssistResult:
    """Measure the rate of a large product on the CPU and then every case.

    Raises:
        OptionError: the recipe asks for what this machine does not have.
        InputError: the base cannot be had, or workers do not start or do not answer.
        ProfileError: the profile of this machine, if there is one, cannot be read.
    """
    began_s, load_average = time.perf_counter(), os.getloadavg()[0]
    setup = _prepare(recipe)
    peak_flops_per_s = measure_peak(setup)
    cases: list[AssistCaseResult] = []
    with open_bench(setup) as bench:
        for case in recipe.cases:
            cases.append(_measure(recipe, bench, case, peak_flops_per_s))
            free_memory(setup.device)
            on_case(cases[-1])
        num_adapters = bench.num_adapters
    with torch_threads(len(setup.cores)):
        cpu = describe_device(torch.device("cpu"))
    facts = AssistFacts(
        recipe=recipe.name,
        description=recipe.description,
        caraserve_version=__version__,
        commit=code_commit(),
        versions=installed_versions(_PACKAGES),
        device=describe_device(setup.device),
        cpu=cpu,
        num_cores=os.cpu_count() or 1,
        load_average=round(load_average, 2),
        base=recipe.base,
        dtype=str(setup.dtype).removeprefix("torch."),
        compute_dtype=str(choose_compute_dtype(setup.dtype)).removeprefix("torch."),
        modules=recipe.modules,
        warmups=recipe.warmups,
        repeats=recipe.repeats,
        num_workers=len(setup.cores),
        tokens_per_worker=setup.tokens_per_worker,
        num_adapters=num_adapters,
        peak_flops_per_s=peak_flops_per_s,
        seconds=time.perf_counter() - began_s,
    )
    return AssistResult(facts=facts, cases=tuple(cases))


def _prepare(recipe: AssistRecipe) -> AssistSetup:
    device = bench_device(recipe.name, recipe.device)
    most_rank = max(case.lora_rank for case in recipe.cases)
    max_tokens = max(case.num_tokens for case in recipe.cases)
    if most_rank > MAX_LORA_RANK or max_tokens > MAX_ASSISTED_TOKENS:
        raise OptionError(
            f"recipe '{recipe.name}' has an adapter of rank {most_rank} and a prompt of {max_tokens} tokens; "
            f"CPU workers compute ranks up to {MAX_LORA_RANK} and {MAX_ASSISTED_TOKENS} tokens"
        )
    options = ReplicaOptions(base=recipe.base, cpu_workers=recipe.cpu_workers)
    try:
        cores = choose_cores(options)
    except OptionError as error:
        said = str(error).replace("--cpu-workers", "'cpu_workers'")
        raise OptionError(f"recipe '{recipe.name}': {said}") from error
    config = resolve_base(recipe.base, "random").config
    dtype = choose_dtype(recipe.dtype, device, config.dtype)
    break_even = make_break_even(find_profile(options, dtype, device), options, device)
    # The checked round, warm-ups, repeats, and the trace.
    uses_of_a_case = _MOST_WAYS * (1 + recipe.warmups + recipe.repeats) + 1
    return AssistSetup(
        shape=config.shape,
        modules=recipe.modules,
        device=device,
        dtype=dtype,
        cores=cores,
        tokens_per_worker=TOKENS_PER_WORKER if break_even is None else break_even.profile.tokens_per_worker,
        max_tokens=max_tokens,
        lora_ranks=tuple(dict.fromkeys(case.lora_rank for case in recipe.cases)),
        most_uses=uses_of_a_case,
    )


def _measure(
    recipe: AssistRecipe, bench: AssistBench, case: AssistCase, peak_flops_per_s: float
) -> AssistCaseResult:
    """All ways of a case: each checked once, then timed in turn."""
    prefill, by_torch = Prefill(bench, case.num_tokens), TorchPrefill(bench, case.num_tokens)
    ways = _ways(prefill, by_torch)
    error = 0.0
    for name, way in ways.items():
        _, weights = run_way(way, bench, case.lora_rank)
        if name in _BY_TORCH:
            error = max(error, by_torch.error(weights))
        else:
            error = max(error, prefill.error(weights, with_base=name != _WORKERS))
    seconds = _time(ways, bench, case.lora_rank, recipe.warmups, recipe.repeats)
    setup = bench.setup
    num_ops = len(setup.ops)
    return AssistCaseResult(
        case=case,
        num_ops=num_ops,
        op_flops=setup.prefill_flops(case.num_tokens, case.lora_rank) / num_ops,
        peak_flops_per_s=peak_flops_per_s,
        times=_judge(seconds, num_ops),
        error=error,
        wrong=_wrong(error, setup.dtype),
        spans=trace_prefill(prefill, case.lora_rank),
    )


def _ways(prefill: Prefill, by_torch: TorchPrefill) -> dict[str, Way]:
    def launched() -> None:
        prefill.launch(with_base=True)

    def launched_alone() -> None:
        prefill.launch(with_base=False)

    if prefill.bench.setup.device.type != "cuda":
        return {
            _SYNC_FREE: lambda weights: prefill.assisted(launched, weights),
            _WORKERS: lambda weights: prefill.assisted(launched_alone, weights),
            _TORCH: by_torch.run,
        }
    replayed, replayed_alone = prefill.capture(with_base=True), prefill.capture(with_base=False)
    return {
        _SYNC_FREE: lambda weights: prefill.assisted(launched, weights),
        _SYNCHRONISED: prefill.synchronised,
        _REPLAYED: lambda weights: prefill.assisted(replayed, weights),
        _WORKERS: lambda weights: prefill.assisted(replayed_alone, weights),
        _TORCH: by_torch.run_for_device,
        _TORCH_ALONE: by_torch.run,
    }


def _time(
    ways: Mapping[str, Way], bench: AssistBench, lora_rank: int, warmups: int, repeats: int
) -> dict[str, list[float]]:
    """Way → seconds of each repeat. Every repeat begins with another way, so that none always follows the
    same one."""
    names = list(ways)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(-warmups, repeats):
        first = repeat % len(names)
        for name in (*names[first:], *names[:first]):
            taken_s, _ = run_way(ways[name], bench, lora_rank)
            if repeat >= 0:
                seconds[name].append(taken_s)
    return seconds


def _judge(seconds: Mapping[str, list[float]], num_ops: int) -> AssistTimes:
    def prefill_ms(name: str) -> Spread | None:
        return Spread.of([1e3 * each for each in seconds[name]]) if name in seconds else None

    def op_us(name: str) -> Spread:
        return Spread.of([1e6 * each / num_ops for each in seconds[name]])

    def pairs(name: str, other: str) -> list[tuple[float, float]]:
        return list(zip(seconds[name], seconds[other], strict=True))

    saved_ms = None
    if _SYNCHRONISED in seconds:
        saved_ms = Spread.of([1e3 * (late - free) for late, free in pairs(_SYNCHRONISED, _SYNC_FREE)])
    return AssistTimes(
        sync_free_ms=Spread.of([1e3 * each for each in seconds[_SYNC_FREE]]),
        synchronised_ms=prefill_ms(_SYNCHRONISED),
        saved_ms=saved_ms,
        replayed_ms=prefill_ms(_REPLAYED),
        workers_us=op_us(_WORKERS),
        torch_us=op_us(_TORCH),
        torch_alone_us=op_us(_TORCH_ALONE) if _TORCH_ALONE in seconds else None,
        speedup=Spread.of([slow / fast for slow, fast in pairs(_TORCH, _WORKERS)]),
    )


def _wrong(error: float, dtype: torch.dtype) -> str | None:
    """What to say of results with this error; None if they are right."""
    if error <= TOLERANCES[dtype]:
        return None
    return (
        f"differs from its float32 reference by {error:.1e} of the largest value, not {TOLERANCES[dtype]:g}"
    )
