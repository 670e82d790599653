"""One comparison from recipe to result, and the result as JSON. Knows no terminal."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass

import torch

from caraserve_cli import __version__
from caraserve_cli.bench.comparison import Comparison, Verdict, compare
from caraserve_cli.bench.facts import code_commit, installed_versions
from caraserve_cli.bench.measure import OnRun, measure
from caraserve_cli.bench.recipe import Recipe
from caraserve_cli.bench.result_facts import MeasuredFacts
from caraserve_cli.bench.systems import build_systems, check_installed
from caraserve_cli.bench.workload import Workload, load_workload

_COMPARED_PACKAGES = ("torch", "transformers", "peft")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchFacts(MeasuredFacts):
    """Under which circumstances was measured."""

    device: str
    num_threads: int
    dtype: str
    num_requests: int
    num_adapters: int
    prompt_tokens: int
    batch_size: int
    warmups: int
    repeats: int


@dataclass(frozen=True, slots=True)
class BenchResult:
    """What a benchmark found, and where."""

    facts: BenchFacts
    comparison: Comparison

    @property
    def verdict(self) -> Verdict:
        return self.comparison.verdict

    def as_json(self) -> dict[str, object]:
        """The content of the file that `--json` writes."""
        comparison = dataclasses.asdict(self.comparison)
        for ratio, values in zip(self.comparison.ratios, comparison["ratios"], strict=True):
            values["met"] = ratio.is_met
        return {**self.facts.as_json(), **comparison, "verdict": self.verdict}


def run_benchmark(recipe: Recipe, on_run: OnRun) -> BenchResult:
    """Measure a recipe's systems on its workload and compare them.

    Raises:
        OptionError: the recipe asks for what this machine does not have.
        InputError: a system is not installed, the workload cannot be read, or a system cannot answer it.
    """
    check_installed(recipe)
    load_average = os.getloadavg()[0]
    workload = load_workload(recipe)
    systems = build_systems(recipe, workload)
    runs = measure(systems, workload, recipe.warmups, recipe.repeats, on_run)
    return BenchResult(_facts(recipe, workload, load_average), compare(runs, recipe.requirements))


def _facts(recipe: Recipe, workload: Workload, load_average: float) -> BenchFacts:
    return BenchFacts(
        recipe=recipe.name,
        description=recipe.description,
        caraserve_version=__version__,
        commit=code_commit(),
        versions=installed_versions(_COMPARED_PACKAGES),
        device=workload.device_description,
        num_threads=torch.get_num_threads(),
        num_cores=os.cpu_count() or 1,
        load_average=round(load_average, 2),
        dtype=str(workload.dtype).removeprefix("torch."),
        num_requests=len(workload.requests),
        num_adapters=len(workload.adapters),
        prompt_tokens=workload.num_prompt_tokens,
        batch_size=recipe.batch_size,
        warmups=recipe.warmups,
        repeats=recipe.repeats,
    )
