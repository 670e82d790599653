"""A batch answered twice in lockstep: by `generate` of transformers (+ PEFT), and, between any two of its
tokens, by one step of a replica of CaraServe. Judges nothing.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

import torch
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.utils import logging as transformers_logging

from caraserve_cli.bench.paired_result import Pass
from caraserve_cli.bench.recipe import Recipe
from caraserve_cli.bench.workload import Workload, replica_options
from caraserve_cli.core import Completion, Request
from caraserve_cli.events import EventSink
from caraserve_cli.fleet.local import LocalReplica, NoEvents
from caraserve_cli.fleet.options import ReplicaOptions
from caraserve_cli.fleet.replica import Replica
from caraserve_cli.fleet.surroundings import Surroundings
from caraserve_cli.job.clock import RunClock

# Starts a replica on the CPU, where a step is over when `poll` returns.
OpenReplica = Callable[[Surroundings, ReplicaOptions, Callable[[], float], EventSink], Replica]


class PairedSteps:
    """Both sides, loaded and ready.

    Args:
        with_peft: requests with adapters can be answered.
        open_replica: starts our side.

    Raises:
        InputError: the base cannot be loaded, or no request names an adapter.
    """

    def __init__(
        self,
        recipe: Recipe,
        workload: Workload,
        *,
        with_peft: bool,
        open_replica: OpenReplica = LocalReplica,
    ) -> None:
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        # A prompt is computed anew in every pass, as the reference does it, and in one step.
        options = replace(replica_options(recipe), prefix_caching=False)
        options = replace(options, max_batch_tokens=max(options.max_batch_tokens, workload.num_prompt_tokens))
        clock = RunClock()
        self._replica = open_replica(Surroundings.prepare(options), options, clock, NoEvents())
        clock.start()
        self._transformers = _load_transformers(workload)
        self._generate_mixed: _Generate | None = None
        if with_peft and workload.adapters:
            from caraserve_cli.bench.peft_systems import LoadedPeft

            self._generate_mixed = LoadedPeft(workload).generate

    def close(self) -> None:
        """Nothing is answered any more."""
        self._replica.close()

    def answer(self, requests: Sequence[Request], number: int) -> Pass:
        """One pass; `number` is another one in each."""
        batch = [replace(each, id=f"{number} {each.id}") for each in requests]
        self._replica.submit(batch)
        turns = _Turns(self._replica)
        gc.collect()
        rows = self._generate(batch, turns)
        while self._replica.num_unfinished:
            turns.poll()
        return Pass(
            ours_ms=turns.ours_ms,
            theirs_ms=turns.theirs_ms,
            num_requests=len(batch),
            undone=_find_undone(batch, rows, turns),
        )

    def _generate(self, batch: Sequence[Request], turns: _Turns) -> list[list[int]]:
        """The reference's answers."""
        stopping = StoppingCriteriaList([turns])
        if any(request.adapter for request in batch):
            assert self._generate_mixed is not None, "only without adapters are cases left without PEFT"
            turns.begin()
            return self._generate_mixed(batch, stopping)
        width = max(len(request.prompt_token_ids) for request in batch)
        padded = [[0] * (width - len(each.prompt_token_ids)) + [*each.prompt_token_ids] for each in batch]
        is_prompt = [[0] * (width - len(p)) + [1] * len(p) for p in (each.prompt_token_ids for each in batch)]
        turns.begin()
        with torch.inference_mode():
            output = cast("Callable[..., torch.Tensor]", self._transformers.generate)(
                input_ids=torch.tensor(padded),
                attention_mask=torch.tensor(is_prompt),
                max_new_tokens=batch[0].sampling.max_tokens,
                do_sample=False,
                pad_token_id=0,
                stopping_criteria=stopping,
            )
        rows: list[list[int]] = output[:, width:].tolist()
        return rows


_Generate = Callable[[Sequence[Request], StoppingCriteriaList], list[list[int]]]


class _Turns(StoppingCriteria):
    """Stops nothing: after each token of the reference it is our turn for one step, and the clock tells
    both apart."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._began_s = 0.0
        self.ours_ms: list[float] = []
        self.theirs_ms: list[float] = []
        self.answers: dict[str, tuple[int, ...]] = {}
        self.problems: list[str] = []

    def begin(self) -> None:
        """The reference starts now."""
        self._began_s = time.perf_counter()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> torch.Tensor:
        ended_s = time.perf_counter()
        self.theirs_ms.append(1e3 * (ended_s - self._began_s))
        self.poll()
        self.begin()
        return torch.zeros(len(input_ids), dtype=torch.bool)

    def poll(self) -> None:
        """One step of ours, on the clock."""
        began_s = time.perf_counter()
        outcomes = self._replica.poll()
        self.ours_ms.append(1e3 * (time.perf_counter() - began_s))
        for outcome in outcomes:
            if isinstance(outcome, Completion):
                self.answers[outcome.request.id] = tuple(outcome.token_ids)
            else:
                self.problems.append(outcome.message)


def _find_undone(batch: Sequence[Request], rows: Sequence[Sequence[int]], turns: _Turns) -> str | None:
    """Why the two sides did not do the same work, step by step; None if they did."""
    if turns.problems:
        return f"{len(turns.problems)} of {len(batch)} requests failed, the first: {turns.problems[0]}"
    num_other = sum(
        turns.answers.get(request.id) != tuple(row) for request, row in zip(batch, rows, strict=True)
    )
    if num_other:
        return f"{num_other} of {len(batch)} answers are not those of the reference"
    if len(turns.ours_ms) != len(turns.theirs_ms):
        return f"{len(turns.ours_ms)} steps of ours stand beside {len(turns.theirs_ms)} of the reference"
    return None


def _load_transformers(workload: Workload) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(workload.base, dtype=workload.dtype)
    # Not the checkpoint's, whose keys `generate` would obey; every answer has its full length.
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    torch.nn.Module.eval(model)
    return model
