"""From the records of runs to the times of the steps that a case measures. Knows no torch and no files."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from caraserve_cli.bench.comparison import Spread
from caraserve_cli.bench.engine_result import CaseRun, Peer, Peers, all_undone
from caraserve_cli.bench.step_recipe import Measure, StepCase
from caraserve_cli.bench.step_result import LoraPart, StepCaseResult, StepTimes


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFloors:
    """The least that a step could take, and the reading of its adapters; operations of a prefill step, 0 for
    decoding."""

    step_ms: float
    lora_ms: float
    flops: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FittingSteps:
    """The steps of one run that are what its case measures; there is at least one.

    Attributes:
        step_ms: median of their times. Steps overlap, and each accounts for the time since the one before it
            ended: gaps between them on the device are in it.
        context_tokens: what a request saw on average, its new token included; 0 for prefill.
    """

    num_steps: int
    step_ms: float
    context_tokens: float


def find_steps(case: StepCase, run: CaseRun) -> FittingSteps | None:
    """The steps of a run that are what its case measures; None where there is none."""
    steps_ms: list[float] = []
    contexts: list[float] = []
    # In a decoding step that fits no request has ended or lost its cache: all tokens so far are seen.
    num_computed = 0
    for step in run.steps:
        num_computed += step.num_prefill_tokens + step.num_decode_tokens
        if case.measure is Measure.DECODE:
            fits = not step.num_prefill_tokens and step.num_decode_tokens == case.num_requests
        else:
            fits = step.num_prefill_tokens == case.options.max_batch_tokens
        if fits:
            steps_ms.append(step.end_ms - step.start_ms)
            contexts.append(num_computed / case.num_requests if case.measure is Measure.DECODE else 0.0)
    if not steps_ms:
        return None
    return FittingSteps(
        num_steps=len(steps_ms),
        step_ms=statistics.median(steps_ms),
        context_tokens=statistics.fmean(contexts),
    )


def judge_steps(
    case: StepCase,
    runs: Sequence[CaseRun],
    without: Sequence[CaseRun] | None,
    floors_at: Callable[[float], StepFloors],
    peft: Peer | None,
) -> StepCaseResult:
    """What the measured runs of a case say, of which there is at least one.

    Args:
        without: the runs of its case without adapters, of the same repeats; None where it has none.
        floors_at: the tokens that a request sees on average -> the floors of such steps.
    """
    peers = Peers(peft=peft)
    steps, undone = _all_steps(case, runs)
    steps_without: list[FittingSteps] = []
    if without is not None:
        # The same filter: but for the adapters, both cases are the same work.
        steps_without, undone_without = _all_steps(case, without)
        undone += tuple(f"the case without adapters is not measured: {what}" for what in undone_without)
    if len(steps) < len(runs):
        return StepCaseResult(case=case, times=None, undone=undone, peers=peers)
    context_tokens = statistics.fmean(each.context_tokens for each in steps)
    floors = floors_at(context_tokens)
    times = StepTimes(
        step_ms=Spread.of([each.step_ms for each in steps]),
        num_steps=tuple(each.num_steps for each in steps),
        context_tokens=context_tokens,
        floor_ms=floors.step_ms,
        flops=floors.flops,
        lora=_lora_part(steps, steps_without, floors.lora_ms) if len(steps_without) == len(steps) else None,
    )
    return StepCaseResult(case=case, times=times, undone=undone, peers=peers)


def _all_steps(case: StepCase, runs: Sequence[CaseRun]) -> tuple[list[FittingSteps], tuple[str, ...]]:
    """The steps of each run that has any, and what was not done."""
    found = [find_steps(case, run) for run in runs]
    steps = [each for each in found if each is not None]
    undone = all_undone(runs)
    if len(steps) < len(runs) and not undone:
        undone = (f"no step {_wanted(case)}",)
    return steps, undone


def _wanted(case: StepCase) -> str:
    if case.measure is Measure.DECODE:
        return f"decodes for all {case.num_requests} requests and prefills nothing"
    return f"has {case.options.max_batch_tokens} tokens of prompts, 'max_batch_tokens'"


def _lora_part(steps: Sequence[FittingSteps], without: Sequence[FittingSteps], floor_ms: float) -> LoraPart:
    pairs = [(each.step_ms, other.step_ms) for each, other in zip(steps, without, strict=True)]
    return LoraPart(
        part_ms=Spread.of([step_ms - without_ms for step_ms, without_ms in pairs]),
        share=Spread.of([1 - without_ms / step_ms for step_ms, without_ms in pairs]),
        floor_ms=floor_ms,
    )
