"""One benchmark of pairs from recipe to result. Knows no terminal."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial

import torch

from caraserve_cli import __version__
from caraserve_cli.bench.facts import code_commit, installed_versions
from caraserve_cli.bench.paired_recipe import PairedCase, PairedRecipe, skipped_cases
from caraserve_cli.bench.paired_result import PairedFacts, PairedResult, Pass, judge_pairs
from caraserve_cli.bench.paired_steps import PairedSteps
from caraserve_cli.bench.slowed_replica import SlowedReplica
from caraserve_cli.bench.workload import Workload, load_workload
from caraserve_cli.core import Request
from caraserve_cli.fleet.local import LocalReplica

_PACKAGES = ("torch", "transformers", "peft")
# Of the pass before the measured ones: the first steps of a process are slower, the third is not.
_WARMUP_TOKENS = 4

# Told after each pass: the case's name, the repeat (from 1; 0 for the warm-up), and the pass.
OnPass = Callable[[str, int, Pass], None]


def run_paired(recipe: PairedRecipe, on_pass: OnPass, slow_decode: float | None = None) -> PairedResult:
    """Measure every case whose reference is installed.

    Args:
        slow_decode: by what factor our decoding steps are slowed on purpose; None for not at all.

    Raises:
        InputError: the workload cannot be read, or not be answered.
    """
    load_average = os.getloadavg()[0]
    workload = load_workload(recipe.comparison)
    skipped = skipped_cases(recipe)
    cases = [case for case in recipe.cases if case.name not in skipped]
    passes: dict[str, list[Pass]] = {case.name: [] for case in cases}
    if cases:
        open_replica = LocalReplica if slow_decode is None else partial(SlowedReplica, slow_decode)
        with_peft = any(not case.without_adapters for case in cases)
        steps = PairedSteps(recipe.comparison, workload, with_peft=with_peft, open_replica=open_replica)
        with closing(steps):
            for repeat in range(recipe.repeats + 1):
                for case in cases:
                    done = steps.answer(_requests(case, workload, recipe, is_warmup=repeat == 0), repeat)
                    on_pass(case.name, repeat, done)
                    if repeat:
                        passes[case.name].append(done)
    return PairedResult(
        _facts(recipe, workload, load_average, slow_decode),
        tuple(judge_pairs(case.name, case.reference, passes[case.name]) for case in cases),
        skipped,
    )


def _requests(
    case: PairedCase, workload: Workload, recipe: PairedRecipe, *, is_warmup: bool
) -> Sequence[Request]:
    max_tokens = min(_WARMUP_TOKENS, recipe.output_tokens) if is_warmup else recipe.output_tokens
    return [
        replace(
            request,
            adapter=None if case.without_adapters else request.adapter,
            sampling=replace(request.sampling, max_tokens=max_tokens),
        )
        for request in workload.requests
    ]


def _facts(
    recipe: PairedRecipe, workload: Workload, load_average: float, slow_decode: float | None
) -> PairedFacts:
    return PairedFacts(
        recipe=recipe.name,
        description=recipe.description,
        caraserve_version=__version__,
        commit=code_commit(),
        versions=installed_versions(_PACKAGES),
        device=workload.device_description,
        num_threads=torch.get_num_threads(),
        num_cores=os.cpu_count() or 1,
        load_average=round(load_average, 2),
        dtype=str(workload.dtype).removeprefix("torch."),
        num_adapters=len(workload.adapters),
        prompt_tokens=workload.num_prompt_tokens,
        output_tokens=recipe.output_tokens,
        repeats=recipe.repeats,
        slow_decode=slow_decode,
    )
