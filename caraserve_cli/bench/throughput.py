"""One throughput benchmark from recipe to result: the floor first, then every case.

Cases with the same options share a replica, and their repeats are interleaved on it. Replicas come one after
the other, so that each has the device to itself, as a run has. Knows no terminal.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from caraserve_cli import __version__
from caraserve_cli.bench.case_runner import CaseRunner
from caraserve_cli.bench.facts import code_commit, installed_versions
from caraserve_cli.bench.floor import DeviceSpeed, FloorCase, floor_seconds, measure_speed
from caraserve_cli.bench.synthetic import SyntheticAdapters, adapters_of
from caraserve_cli.bench.throughput_recipe import ThroughputCase, ThroughputRecipe
from caraserve_cli.bench.throughput_result import (
    CaseResult,
    CaseRun,
    ThroughputFacts,
    ThroughputResult,
    judge_case,
)
from caraserve_cli.errors import OptionError
from caraserve_cli.fleet.local import Surroundings, copies_adapters
from caraserve_cli.fleet.machine import choose_device
from caraserve_cli.fleet.options import ReplicaOptions

# Told after each run: the case's name, the repeat (from 1; 0 for a warm-up), and the run.
OnCaseRun = Callable[[str, int, CaseRun], None]

_PACKAGES = ("torch", "triton", "transformers")


def run_throughput(recipe: ThroughputRecipe, on_run: OnCaseRun) -> ThroughputResult:
    """Measure the floor and then every case.

    Raises:
        OptionError: the recipe asks for what this machine does not have.
        InputError: the base cannot be had, or a step does not fit the device's memory.
    """
    load_average = os.getloadavg()[0]
    device = _choose_device(recipe)
    adapters = SyntheticAdapters(
        (adapter for case in recipe.cases for adapter in adapters_of(case)), packed=copies_adapters(device)
    )
    started_s = time.perf_counter()
    surroundings = _prepare(recipe, adapters)
    prepared_s = time.perf_counter()
    first = surroundings[recipe.cases[0].options]
    _make_adapters(adapters, first)
    made_s = time.perf_counter()
    speed = measure_speed(device, first.dtype)
    results: dict[str, CaseResult] = {}
    seconds_to_ready: list[float] = []
    for options, around in surroundings.items():
        cases = [case for case in recipe.cases if case.options == options]
        ready_s, runs = _run_replica(recipe, around, cases, adapters.names, on_run)
        _free_memory(device)
        seconds_to_ready.append(ready_s)
        results |= {case.name: _judge(recipe, case, runs[case.name], around, speed) for case in cases}
    facts = ThroughputFacts(
        recipe=recipe.name,
        description=recipe.description,
        weights=recipe.options.weights,
        caraserve_version=__version__,
        commit=code_commit(),
        versions=installed_versions(_PACKAGES),
        device=first.device_description,
        num_threads=torch.get_num_threads(),
        num_cores=os.cpu_count() or 1,
        load_average=round(load_average, 2),
        base=recipe.options.base,
        dtype=str(first.dtype).removeprefix("torch."),
        prompt_tokens=recipe.prompt_tokens,
        output_tokens=recipe.output_tokens,
        warmups=recipe.warmups,
        repeats=recipe.repeats,
        copy_bytes_per_s=speed.bytes_per_s,
        product_flops_per_s=speed.flops_per_s,
        startup_s=prepared_s - started_s + seconds_to_ready[0],
        num_adapters=len(adapters.names),
        adapters_s=made_s - prepared_s,
    )
    return ThroughputResult(facts, tuple(results[case.name] for case in recipe.cases))


def _choose_device(recipe: ThroughputRecipe) -> torch.device:
    """The recipe's device, refused in a recipe's words."""
    if recipe.options.device == "cuda" and not torch.cuda.is_available():
        raise OptionError(
            f"recipe '{recipe.name}' has device = \"cuda\", and torch sees no CUDA device; run it "
            "where there is one, or a copy of it with another device"
        )
    return choose_device(recipe.options.device)


def _prepare(recipe: ThroughputRecipe, adapters: SyntheticAdapters) -> dict[ReplicaOptions, Surroundings]:
    """The surroundings of every replica, with one host store. All are made before anything is on the device:
    each replica is to have what is free now."""
    all_options = dict.fromkeys(case.options for case in recipe.cases)
    prepared = [Surroundings.prepare(options, adapters.source) for options in all_options]
    first = prepared[0]
    context_tokens = first.base.config.context_tokens
    num_tokens = recipe.prompt_tokens + recipe.output_tokens
    if num_tokens > context_tokens:
        raise OptionError(
            f"recipe '{recipe.name}': 'prompt_tokens' and 'output_tokens' are {num_tokens} together, and the "
            f"context of '{recipe.options.base}' has {context_tokens}"
        )
    return {
        options: replace(each, host_store=first.host_store)
        for options, each in zip(all_options, prepared, strict=True)
    }


def _make_adapters(adapters: SyntheticAdapters, surroundings: Surroundings) -> None:
    """Have all adapters in host memory.

    Raises:
        OptionError: they do not fit there; they would be made anew while a case is measured.
    """
    host_store = surroundings.host_store
    num_bytes = sum(host_store.fetch(name).num_bytes for name in adapters.names)
    adapters.forget_content()
    if num_bytes > host_store.kept_bytes:
        raise OptionError(
            f"'host_adapter_memory': the adapters of all cases take {num_bytes / 1e9:.1f} GB, more than the "
            "host memory for adapters; give more"
        )


def _run_replica(
    recipe: ThroughputRecipe,
    surroundings: Surroundings,
    cases: Sequence[ThroughputCase],
    adapters: Sequence[str],
    on_run: OnCaseRun,
) -> tuple[float, dict[str, list[CaseRun]]]:
    """The seconds until a replica is ready, and case name -> its measured runs, interleaved after the
    warm-ups."""
    started_s = time.perf_counter()
    runner = CaseRunner(recipe, surroundings, cases[0].options, adapters)
    ready_s = time.perf_counter() - started_s
    runs: dict[str, list[CaseRun]] = {case.name: [] for case in cases}
    for repeat in range(1 - recipe.warmups, recipe.repeats + 1):
        for case in cases:
            run = runner.answer(case)
            on_run(case.name, max(repeat, 0), run)
            if repeat > 0:
                runs[case.name].append(run)
    return ready_s, runs


def _judge(
    recipe: ThroughputRecipe,
    case: ThroughputCase,
    runs: Sequence[CaseRun],
    surroundings: Surroundings,
    speed: DeviceSpeed,
) -> CaseResult:
    adapters = adapters_of(case) or (None,)
    config = surroundings.engine_config
    floor_case = FloorCase(
        adapters=[adapters[index % len(adapters)] for index in range(case.num_requests)],
        prompt_tokens=recipe.prompt_tokens,
        output_tokens=recipe.output_tokens,
        max_running=config.max_running,
    )
    floor_s = floor_seconds(floor_case, surroundings.base.config, surroundings.dtype, speed)
    return judge_case(
        case,
        runs,
        kv_tokens=config.num_kv_tokens,
        adapter_pool_bytes=config.adapter_memory_bytes,
        floor_tokens_per_s=floor_case.num_output_tokens / floor_s,
    )


def _free_memory(device: torch.device) -> None:
    """Give back what a replica had, which its cycles may still hold."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
