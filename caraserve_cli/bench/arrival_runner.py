"""The arrivals of a break-even grid: cold requests that arrive, one at a time, beside others that decode.

The others are one flock: submitted together, decoding in step, begun anew when they end. They have adapters
that stay on the device; an arrival's adapter is taken off it before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, cycle

from caraserve_cli.bench.arrival_recipe import ArrivalCase
from caraserve_cli.bench.bench_replica import BenchReplica
from caraserve_cli.bench.cold_starts import CACHED, STREAM
from caraserve_cli.bench.synthetic import random_prompts
from caraserve_cli.core import Completion, Failure, Request, SamplingParams
from caraserve_cli.errors import InputError, OptionError
from caraserve_cli.events import StepRecord
from caraserve_cli.report.metrics import measure

# Steps of the flock alone before each arrival: what the one before has left under way ends in them.
_SETTLING_STEPS = 3

# Prompt of the others, or the longest of an arrival if that is shorter. Chosen, not measured.
_FLOCK_TOKENS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrivalRun:
    """One arrival.

    Attributes:
        ttft_ms: of the arrival.
        others_tpot_ms: mean gap between the tokens of the others, over the steps that overlap the time from
            the arrival to its first token.
        cold_start: how its adapter came.
    """

    ttft_ms: float
    others_tpot_ms: float
    cold_start: str


class ArrivalRunner:
    """Runs the arrivals of one case and one rank on a replica where nothing is unfinished.

    Args:
        where: the recipe and the case, for messages.
    """

    def __init__(self, where: str, replica: BenchReplica, case: ArrivalCase, lora_rank: int) -> None:
        self._where = where
        self._replica = replica
        self._case = case
        decoding, cold = case.adapters_of_rank(lora_rank)
        self._decoding = [adapter.name for adapter in decoding]
        self._cold = cycle(adapter.name for adapter in cold)
        self._ids = map(str, count())
        self._flock: set[str] = set()
        self._steps_left = 0  # of the flock
        self._most_steps = 0  # that an arrival took so far
        replica.set_out(CACHED, self._decoding, None)

    def arrive(self, strategy: str, prompt: tuple[int, ...]) -> ArrivalRun:
        """One arrival, with the next of the cold adapters.

        Raises:
            OptionError: the others end before the arrival does, also when they have just begun.
            InputError: a request failed.
        """
        if len(self._flock) < len(self._decoding) or self._steps_left <= self._most_steps:
            self._begin_flock()
        run = self._try(strategy, prompt)
        if run is None:
            self._begin_flock()
            run = self._try(strategy, prompt)
        if run is None:
            raise OptionError(
                f"{self._where}: 'decode_tokens': {self._case.grid.decode_tokens} are done before an arrival "
                "is answered; give more"
            )
        return run

    def finish(self) -> None:
        """Answer what is unfinished."""
        while self._replica.num_unfinished:
            self._poll()

    def _begin_flock(self) -> None:
        """Have all of the flock decode, with nothing else."""
        self.finish()
        decode_tokens, num_tokens = (
            self._case.grid.decode_tokens,
            min(_FLOCK_TOKENS, self._case.prompt_tokens),
        )
        prompts = random_prompts("flock", num_tokens, self._replica.vocab_size)
        flock = [self._request(name, next(prompts), decode_tokens) for name in self._decoding]
        self._flock = {request.id for request in flock}
        self._steps_left = decode_tokens
        self._replica.submit(flock)
        self._replica.forget_steps()
        while len(self._flock) == len(flock) and not self._all_decode():
            self._poll()

    def _all_decode(self) -> bool:
        steps = [step for step in self._replica.steps if not step.is_beside]
        return bool(steps) and steps[-1].num_decode_tokens == len(self._flock)

    def _try(self, strategy: str, prompt: tuple[int, ...]) -> ArrivalRun | None:
        """None if one of the flock ended meanwhile."""
        steps_left = self._steps_left
        for _ in range(_SETTLING_STEPS):
            self._poll()
        adapter = next(self._cold)
        self._replica.evict_adapters([adapter])
        if strategy == CACHED:
            self._replica.use(STREAM, None)
            self._answer(self._request(adapter, (0,), 1))
        self._replica.use(strategy, self._case.link_gbps)
        self._replica.forget_steps()
        request = self._request(adapter, prompt, self._case.grid.arrival_tokens)
        completion = self._answer(request)
        self._most_steps = max(self._most_steps, steps_left - self._steps_left)
        if len(self._flock) < len(self._decoding):
            return None
        ttft_ms = measure(completion).ttft_ms
        return ArrivalRun(
            ttft_ms=ttft_ms,
            others_tpot_ms=mean_gap_ms(self._replica.steps, request.arrival_ms, request.arrival_ms + ttft_ms),
            cold_start=str(completion.cold_start),
        )

    def _request(self, adapter: str, prompt: tuple[int, ...], num_tokens: int) -> Request:
        """One that arrives now."""
        return Request(
            id=next(self._ids),
            line=1,
            prompt_token_ids=prompt,
            adapter=adapter,
            sampling=SamplingParams(max_tokens=num_tokens, ignore_eos=True),
            arrival_ms=self._replica.now_ms(),
        )

    def _answer(self, request: Request) -> Completion:
        self._replica.submit([request])
        while True:
            for completion in self._poll():
                if completion.request.id == request.id:
                    return completion

    def _poll(self) -> list[Completion]:
        num_before = len(self._replica.steps)
        completions: list[Completion] = []
        for outcome in self._replica.poll():
            if isinstance(outcome, Failure):
                raise InputError(f"{self._where}: a request failed: {outcome.message}")
            completions.append(outcome)
        self._steps_left -= sum(step.num_decode_tokens > 0 for step in self._replica.steps[num_before:])
        self._flock -= {each.request.id for each in completions}
        return completions


def mean_gap_ms(steps: Sequence[StepRecord], from_ms: float, to_ms: float) -> float:
    """Time of the steps that overlap this one, for each of them that gave the others a token."""
    steps = [step for step in steps if not step.is_beside and step.start_ms < to_ms and step.end_ms > from_ms]
    num_gaps = sum(step.num_decode_tokens > 0 for step in steps)
    return sum(step.end_ms - step.start_ms for step in steps) / max(num_gaps, 1)
