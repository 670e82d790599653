"""Everything that a benchmark of the engine alone runs: the device's speeds first, then every case.

Cases with the same options share a replica, and their repeats are interleaved on it. Replicas come one after
the other, so that each has the device to itself, as a run has. Judges nothing and knows no terminal.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

import torch

from caraserve_cli import __version__
from caraserve_cli.adapters.host_store import HostStore
from caraserve_cli.bench.bench_device import bench_device, free_memory
from caraserve_cli.bench.case_runner import CaseRunner
from caraserve_cli.bench.engine_case import EngineCase, EngineRecipe
from caraserve_cli.bench.engine_result import CaseRun, EngineFacts, OnCaseRun, Peer
from caraserve_cli.bench.facts import code_commit, installed_versions
from caraserve_cli.bench.floor import DeviceSpeed, measure_speed
from caraserve_cli.bench.peers import OnPeer, measure_peers
from caraserve_cli.bench.synthetic import adapters_of
from caraserve_cli.errors import InputError, OptionError
from caraserve_cli.fleet.machine import choose_dtype
from caraserve_cli.fleet.options import LoraKernel, ReplicaOptions
from caraserve_cli.fleet.surroundings import Surroundings, copies_adapters
from caraserve_cli.fleet.synthetic_adapter import SyntheticAdapter
from caraserve_cli.fleet.synthetic_adapters import SyntheticAdapters
from caraserve_cli.model.resolve import resolve_base

if TYPE_CHECKING:
    from caraserve_cli.bench.synthetic_folders import SyntheticFolders

_PACKAGES = ("torch", "triton", "transformers", "peft")


# Made where they are asked for, or on disk where several processes ask.
_Adapters: TypeAlias = "SyntheticAdapters | SyntheticFolders"

_Case = TypeVar("_Case", bound=EngineCase)
_Run = TypeVar("_Run")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRuns(Generic[_Run]):
    """What was run, and where.

    Attributes:
        speed: of the device, measured before the cases.
        runs: case name → its measured runs.
        surroundings: of each replica; `floor` needs their sizes.
        peers: case name → transformers + PEFT, of the cases that ask for it.
    """

    facts: EngineFacts
    speed: DeviceSpeed
    runs: Mapping[str, _Run]
    surroundings: Mapping[ReplicaOptions, Surroundings]
    peers: Mapping[str, Peer] = field(default_factory=dict)


# Starts a replica and runs the cases that share it, given the names of all adapters: the seconds until it was
# ready, and case name -> what was measured.
RunReplica = Callable[
    [Surroundings, Sequence[_Case], Sequence[str]],
    tuple[float, Mapping[str, _Run]],
]


def run_cases(
    recipe: EngineRecipe[EngineCase], on_run: OnCaseRun, on_peer: OnPeer
) -> EngineRuns[Sequence[CaseRun]]:
    """Measure the device's speeds, run every case, and then transformers + PEFT.

    Raises:
        OptionError: the recipe asks for what this machine does not have.
        InputError: the base cannot be had, or a step does not fit the device's memory.
    """

    def answer(
        around: Surroundings, cases: Sequence[EngineCase], adapters: Sequence[str]
    ) -> tuple[float, dict[str, list[CaseRun]]]:
        return _answer_cases(recipe, around, cases, adapters, on_run)

    done: EngineRuns[Sequence[CaseRun]] = run_replicas(recipe, answer)
    return replace(done, peers=measure_peers(recipe, done.surroundings, on_peer))


def run_replicas(recipe: EngineRecipe[_Case], run_replica: RunReplica[_Case, _Run]) -> EngineRuns[_Run]:
    """Measure the device's speeds, make all adapters, and run the cases, one replica after the other.

    Raises:
        OptionError: the recipe asks for what this machine does not have.
        InputError: the base cannot be had, or a step does not fit the device's memory.
    """
    with ExitStack() as stack:
        return _run_replicas(recipe, run_replica, stack)


def _run_replicas(
    recipe: EngineRecipe[_Case], run_replica: RunReplica[_Case, _Run], stack: ExitStack
) -> EngineRuns[_Run]:
    load_average = os.getloadavg()[0]
    device = bench_device(recipe.name, recipe.options.device)
    adapters = _adapters_by_kernel(recipe, device, stack)
    started_s = time.perf_counter()
    surroundings = _prepare(recipe, adapters)
    prepared_s = time.perf_counter()
    first = surroundings[recipe.cases[0].options]
    _make_adapters(adapters, surroundings)
    made_s = time.perf_counter()
    speed = measure_speed(device, first.dtype)
    runs: dict[str, _Run] = {}
    seconds_to_ready: list[float] = []
    for options, around in surroundings.items():
        cases = [case for case in recipe.cases if case.options == options]
        names = adapters[options.lora_kernel].names
        ready_s, replica_runs = run_replica(around, cases, names)
        free_memory(device)
        seconds_to_ready.append(ready_s)
        runs.update(replica_runs)
    facts = EngineFacts(
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
        warmups=recipe.warmups,
        repeats=recipe.repeats,
        copy_bytes_per_s=speed.bytes_per_s,
        product_flops_per_s=speed.flops_per_s,
        startup_s=prepared_s - started_s + seconds_to_ready[0],
        num_adapters=sum(len(each.names) for each in adapters.values()),
        adapters_s=made_s - prepared_s,
    )
    return EngineRuns(facts=facts, speed=speed, runs=runs, surroundings=surroundings)


def _adapters_by_kernel(
    recipe: EngineRecipe[EngineCase], device: torch.device, stack: ExitStack
) -> dict[LoraKernel, _Adapters]:
    """Those of all cases with the same LoRA kernel, which decides how they lie in host memory. What they need
    on disk is removed with the stack."""
    adapters: dict[LoraKernel, _Adapters] = {}
    for lora_kernel in dict.fromkeys(case.options.lora_kernel for case in recipe.cases):
        cases = [case for case in recipe.cases if case.options.lora_kernel == lora_kernel]
        wanted = dict.fromkeys(adapter for case in cases for adapter in adapters_of(case))
        if recipe.options.tensor_parallel > 1:
            adapters[lora_kernel] = _write_adapters(recipe.options, wanted, device, stack)
        else:
            adapters[lora_kernel] = SyntheticAdapters(wanted, packed=copies_adapters(device))
    return adapters


def _write_adapters(
    options: ReplicaOptions, adapters: Iterable[SyntheticAdapter], device: torch.device, stack: ExitStack
) -> SyntheticFolders:
    """Raises InputError if the disk has no room."""
    from caraserve_cli.bench.synthetic_folders import SyntheticFolders

    config = resolve_base(options.base, options.weights).config
    root = Path(stack.enter_context(TemporaryDirectory(prefix="caraserve-bench-")))
    try:
        return SyntheticFolders(
            root, adapters, config.shape, choose_dtype(options.dtype, device, config.dtype)
        )
    except OSError as error:
        raise InputError(
            f"the adapters for several processes cannot be written to '{root}': {error.strerror}; let TMPDIR "
            "name a folder with room for one of each rank"
        ) from error


def _prepare(
    recipe: EngineRecipe[EngineCase], adapters: Mapping[LoraKernel, _Adapters]
) -> dict[ReplicaOptions, Surroundings]:
    """The surroundings of every replica, with one host store a LoRA kernel. All are made before anything is
    on the device: each replica is to have what is free now."""
    surroundings: dict[ReplicaOptions, Surroundings] = {}
    stores: dict[LoraKernel, HostStore] = {}
    for options in dict.fromkeys(case.options for case in recipe.cases):
        try:
            prepared = Surroundings.prepare(options, adapters[options.lora_kernel].source)
        except OptionError as error:
            case = next(case for case in recipe.cases if case.options == options)
            said = _in_recipe_words(str(error))
            raise OptionError(f"recipe '{recipe.name}', case '{case.name}': {said}") from error
        host_store = stores.setdefault(options.lora_kernel, prepared.host_store)
        surroundings[options] = replace(prepared, host_store=host_store)
    context_tokens = surroundings[recipe.cases[0].options].base.config.context_tokens
    num_tokens = max(case.prompt_tokens + case.output_tokens for case in recipe.cases)
    if num_tokens > context_tokens:
        raise OptionError(
            f"recipe '{recipe.name}': 'prompt_tokens' and 'output_tokens' are {num_tokens} together, and the "
            f"context of '{recipe.options.base}' has {context_tokens}"
        )
    return surroundings


def _in_recipe_words(message: str) -> str:
    """What is said of options, said of a recipe's keys: `--max-running` is 'max_running'."""
    message = re.sub(r"--device (cuda|cpu)", r'device = "\1"', message)
    return re.sub(r"(?<![\w/-])--([a-z][a-z-]*)", lambda option: f"'{option[1].replace('-', '_')}'", message)


def _make_adapters(
    adapters: Mapping[LoraKernel, _Adapters], surroundings: Mapping[ReplicaOptions, Surroundings]
) -> None:
    """Have all adapters in host memory, those of several LoRA kernels in a store each.

    Raises:
        OptionError: they do not fit there together; some would be made anew while a case is measured.
    """
    stores = {options.lora_kernel: around.host_store for options, around in surroundings.items()}
    # What is free was looked at for each replica, and may have changed a little in between.
    room_bytes = min(around.memory.host_adapter_bytes for around in surroundings.values())
    num_bytes = 0
    for lora_kernel, host_store in stores.items():
        for name in adapters[lora_kernel].names:
            num_bytes += host_store.acquire(name).host_bytes
            host_store.release(name)
            if num_bytes > room_bytes or name not in host_store.kept_names:
                raise OptionError(
                    "'host_adapter_memory': the adapters of all cases take more than the host memory for "
                    f"adapters, {room_bytes / 1e9:.4g} GB; give more"
                )
        adapters[lora_kernel].forget_content()


def _answer_cases(
    recipe: EngineRecipe[EngineCase],
    surroundings: Surroundings,
    cases: Sequence[EngineCase],
    adapters: Sequence[str],
    on_run: OnCaseRun,
) -> tuple[float, dict[str, list[CaseRun]]]:
    """The seconds until a replica is ready, and case name -> its measured runs, interleaved after the
    warm-ups."""
    started_s = time.perf_counter()
    runs: dict[str, list[CaseRun]] = {case.name: [] for case in cases}
    with closing(CaseRunner(surroundings, cases[0].options, adapters)) as runner:
        ready_s = time.perf_counter() - started_s
        for repeat in range(1 - recipe.warmups, recipe.repeats + 1):
            for case in cases:
                run = runner.answer(case)
                on_run(case.name, max(repeat, 0), run)
                if repeat > 0:
                    runs[case.name].append(run)
    return ready_s, runs
