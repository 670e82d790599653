"""Which single steps of the engine are measured, as a TOML file says it. Every key is honoured or refused by
name. The top is that of a throughput benchmark (`throughput_recipe`), without the lengths; a case has these
keys and those of the engine's options.

    kind = "steps"
    [[case]]
    name = "32 requests"
    requests = 32                       # all there from the start; at most `max_running`
    adapters = 0                        # as in a throughput benchmark, as are `lora_ranks` and `modules`
    measure = "decode"                  # steps in which all requests decode and none prefills
    prompt_tokens = 480
    output_tokens = 65                  # 64 steps, with contexts of 481 to 544 tokens
    at_most = 1.35                      # median step, as a multiple of its floor
    peft = true                         # measure a decoding step of transformers + PEFT too
    [[case]]
    name = "32 requests, 32 adapters"
    without = "32 requests"             # the same work without adapters: the difference is the added time
    lora_at_most = 2.0                  # median added time, as a multiple of its floor
    lora_share_at_most = 0.2            # and as a share of the step
    ...
    [[case]]
    name = "prefill, 32 adapters"
    measure = "prefill"                 # steps that `max_batch_tokens` tokens of prompts fill exactly
    rate_at_least = 0.62                # operations of the base's linear modules, of the matrix product rate
    ...

Knows no torch and starts nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from caraserve_cli.bench.engine_case import (
    CommonKeys,
    EngineCase,
    EngineRecipe,
    parse_cases,
    parse_common,
    parse_options,
    parse_top,
)
from caraserve_cli.bench.recipe_table import RecipeTable
from caraserve_cli.fleet.options import ReplicaOptions

STEPS = "steps"

_LORA_KEYS = ("lora_at_most", "lora_share_at_most")


class Measure(StrEnum):
    """Which steps of a case are measured."""

    DECODE = "decode"
    PREFILL = "prefill"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCase(EngineCase):
    """One case; None where nothing is required.

    Attributes:
        at_most: what the median decoding step may take, as a multiple of its floor.
        without: name of the case that tells what the step takes without adapters.
        lora_at_most: what the median added time may be, as a multiple of the floor of the adapters' bytes.
        lora_share_at_most: what the median added time may be of the step.
        rate_at_least: what the median prefill step must reach of the matrix product rate.
        is_timed: whether a time that cannot be right is told; not where the work alone counts (see `small`).
    """

    measure: Measure
    at_most: float | None
    without: str | None
    lora_at_most: float | None
    lora_share_at_most: float | None
    rate_at_least: float | None
    is_timed: bool = True

    def is_without(self, other: StepCase) -> bool:
        """Whether this is the work of `other`, but for the adapters, on the same replica."""
        return (
            not self.num_adapters
            and self.measure is other.measure
            and self.num_requests == other.num_requests
            and self.prompt_tokens == other.prompt_tokens
            and self.output_tokens == other.output_tokens
            and self.options == other.options
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecipe(EngineRecipe[StepCase]):
    """One benchmark of the engine's steps."""


def parse_steps(table: RecipeTable, path: Path) -> StepRecipe:
    """The benchmark of steps in a file that was read.

    Raises:
        OptionError: it has an unknown key, or a wrong value.
    """
    table.choice("kind", (STEPS,), STEPS)
    options = parse_options(table, path)
    tables: dict[str, RecipeTable] = {}

    def parse_case(each: RecipeTable) -> StepCase:
        case = _parse_case(each, options)
        tables[case.name] = each
        return case

    recipe = StepRecipe(
        **parse_top(table, path, options, repeats=3),
        cases=parse_cases(table, parse_case),
    )
    table.close()
    _check_pairs(recipe.cases, tables)
    return recipe


def _parse_case(table: RecipeTable, options: ReplicaOptions) -> StepCase:
    table.refuse("vllm", "in a benchmark of steps, since vLLM tells the time of whole answers alone")
    common = parse_common(table, options)
    measure = Measure(table.choice("measure", tuple(Measure), Measure.DECODE))
    prompt_tokens, output_tokens = table.count("prompt_tokens", None), table.count("output_tokens", None)
    if measure is Measure.DECODE and output_tokens < 2:
        raise table.wrong("output_tokens", "at least 2, since the prompt yields the first", output_tokens)
    _check_step_comes(table, measure, common, prompt_tokens)
    _refuse_without_meaning(table, measure, common["num_adapters"])
    without = table.optional_text("without")
    if without is None:
        for key in _LORA_KEYS:
            table.refuse(key, "without 'without'")
    case = StepCase(
        **common,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        cold=False,
        measure=measure,
        at_most=table.optional_positive("at_most"),
        without=without,
        lora_at_most=table.optional_positive("lora_at_most"),
        lora_share_at_most=table.optional_positive("lora_share_at_most"),
        rate_at_least=table.optional_positive("rate_at_least"),
    )
    table.close()
    return case


def _check_step_comes(table: RecipeTable, measure: Measure, common: CommonKeys, prompt_tokens: int) -> None:
    """Refuse what never gives a step to measure.

    A prefill step takes at most `max_running` prompts, and of each at most `prefill_chunk_tokens`; to fill it
    exactly, one is split. The first step is full if any is.
    """
    options, num_requests = common["options"], common["num_requests"]
    if measure is Measure.DECODE and options.max_running < num_requests:
        must_be = f"at least 'requests' ({num_requests}), which are all to decode in one step"
        raise table.wrong("max_running", must_be, options.max_running)
    most_tokens = min(num_requests, options.max_running) * min(prompt_tokens, options.prefill_chunk_tokens)
    if measure is Measure.PREFILL and most_tokens < options.max_batch_tokens:
        must_be = (
            f"at most {most_tokens}, so that prompts fill a step: 'requests' or 'max_running', the smaller, "
            "times 'prompt_tokens' or 'prefill_chunk_tokens', the smaller"
        )
        raise table.wrong("max_batch_tokens", must_be, options.max_batch_tokens)


def _refuse_without_meaning(table: RecipeTable, measure: Measure, num_adapters: int) -> None:
    if measure is Measure.PREFILL:
        for key in ("at_most", "without", *_LORA_KEYS, "peft"):
            table.refuse(key, "where 'measure' is \"prefill\"")
    else:
        table.refuse("rate_at_least", "where 'measure' is \"decode\"")
    if not num_adapters:
        for key in ("without", *_LORA_KEYS):
            table.refuse(key, "where 'adapters' is 0")


def _check_pairs(cases: tuple[StepCase, ...], tables: dict[str, RecipeTable]) -> None:
    by_name = {case.name: case for case in cases}
    for case in cases:
        if case.without is None:
            continue
        other = by_name.get(case.without)
        if other is None or not other.is_without(case):
            must_be = "the name of a case without adapters and otherwise with the same work and options"
            raise tables[case.name].wrong("without", must_be, case.without)
