"""How long steps take on this machine, asked of a replica as a run asks it: of the base, and with prompts
beside requests that decode also with adapters. Fits nothing."""

from __future__ import annotations

import itertools
import random
import statistics
import time
from collections.abc import Iterator, Sequence

from caraserve_cli.core import Failure, Request, SamplingParams
from caraserve_cli.engine.step_sizes import decode_sizes
from caraserve_cli.errors import InputError
from caraserve_cli.events import StepRecord
from caraserve_cli.fleet.local import LocalReplica
from caraserve_cli.fleet.options import ReplicaOptions
from caraserve_cli.fleet.surroundings import Surroundings
from caraserve_cli.fleet.synthetic_adapter import SyntheticAdapter
from caraserve_cli.perf.batch_load import RankSums
from caraserve_cli.perf.kv_cost import ContextStep
from caraserve_cli.perf.mixed import MixedStep

# Tokens of the prefill steps that are measured, as far as the options and the base's context allow.
PREFILL_TOKENS = (16, 32, 64, 128, 256, 512, 1024)
# Of each size after one that is not counted; the median counts.
_PREFILL_STEPS = 7
_DECODE_STEPS = 24
_DECODE_PROMPT_TOKENS = 16
# Batches and prompts of the decoding steps that tell what contexts cost. Chosen, not measured.
_CONTEXT_BATCH_SIZES = (8, 32)
_CONTEXT_PROMPT_TOKENS = (128, 512, 1536)
_CONTEXT_STEPS = 8
# Prompts that are computed beside batches, the batches, and their contexts. Chosen, not measured.
_MIXED_PROMPT_TOKENS = (16, 128, 512)
_MIXED_BATCH_SIZES = (1, 4, 16, 32, 64)
_MIXED_CONTEXT_TOKENS = (16, 512)
# The adapters of their requests, by turns, and what these change. Chosen, not measured.
_MIXED_RANKS, _NUM_MIXED_ADAPTERS = (8, 16, 32, 64), 32
_MIXED_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj")
# Of each prompt after one that is not counted, and steps until the next one is sent.
_MIXED_STEPS, _STEPS_BETWEEN = 5, 2


class _StepLog:
    def __init__(self) -> None:
        self.steps: list[StepRecord] = []

    def on_step(self, record: StepRecord) -> None:
        self.steps.append(record)


def profile_adapters() -> list[SyntheticAdapter]:
    """Those that steps with adapters are measured with."""
    return [
        SyntheticAdapter(_MIXED_RANKS[number % len(_MIXED_RANKS)], _MIXED_MODULES, number)
        for number in range(_NUM_MIXED_ADAPTERS)
    ]


class StepProfiler:
    """A replica whose steps are timed.

    Args:
        surroundings: what the replica is made of, `profile_adapters` among it.
        options: of the replica.
    """

    def __init__(self, surroundings: Surroundings, options: ReplicaOptions) -> None:
        self._config = surroundings.engine_config
        # There graphs are captured, and batches padded to their sizes.
        self.is_padded = surroundings.device.type == "cuda"
        self._gaps_ms: list[float] = []
        self._log = _StepLog()
        self._replica = LocalReplica(surroundings, options, _now_ms, self._log)
        self._prompts = _random_prompts(surroundings.base.config.shape.vocab_size)
        self._num_requests = 0

    def prefill_steps(self) -> dict[int, float]:
        """Tokens of prompts in a step -> its median milliseconds."""
        config = self._config
        measured: dict[int, float] = {}
        for num_tokens in PREFILL_TOKENS:
            # A request's chunk and its context bound what one prompt gives a step.
            longest = min(config.prefill_chunk_tokens, config.max_context_tokens - 1)
            num_prompts = -(-num_tokens // longest)
            fits = self._fits(num_prompts, -(-num_tokens // num_prompts) + 1)
            if num_tokens > config.max_batch_tokens or not fits:
                break
            lengths = [num_tokens // num_prompts + (i < num_tokens % num_prompts) for i in range(num_prompts)]
            steps = [
                step for _ in range(_PREFILL_STEPS + 1) for step in self._answer(lengths, output_tokens=1)[:1]
            ]
            measured[num_tokens] = _median_ms(steps[1:])
        return measured

    def decode_steps(self) -> dict[ContextStep, float]:
        """Steps that decode after short prompts, one for each batch size -> its median milliseconds. The
        sizes are those to which batches are padded, if they are."""
        measured: dict[ContextStep, float] = {}
        prompt_tokens = max(1, min(_DECODE_PROMPT_TOKENS, self._config.max_context_tokens // 2))
        output_tokens = min(_DECODE_STEPS + 2, self._config.max_context_tokens - prompt_tokens)
        sizes = decode_sizes if self.is_padded else batch_sizes
        for batch_size in sizes(self._config.max_running):
            if not self._fits(batch_size, prompt_tokens + output_tokens):
                break
            measured |= self._decode(batch_size, prompt_tokens, output_tokens)
        return measured

    def context_steps(self) -> dict[ContextStep, float]:
        """Steps of the same batches after prompts of several lengths, as far as they fit -> median ms."""
        config = self._config
        measured: dict[ContextStep, float] = {}
        for batch_size in _CONTEXT_BATCH_SIZES:
            for prompt_tokens in _CONTEXT_PROMPT_TOKENS:
                # The first to decode must not have ended when the last prompt is computed.
                room = max(1, config.max_batch_tokens - batch_size)
                num_prefills = -(-batch_size * prompt_tokens // room) - (
                    -prompt_tokens // config.prefill_chunk_tokens
                )
                num_tokens = prompt_tokens + num_prefills + _CONTEXT_STEPS
                if num_tokens > config.max_context_tokens or not self._fits(batch_size, num_tokens):
                    break
                measured |= self._decode(batch_size, prompt_tokens, num_tokens - prompt_tokens)
        return measured

    @property
    def between_steps_ms(self) -> float:
        """Median time between the end of a decoding step and the planning of the next, of those so far."""
        return statistics.median(self._gaps_ms) if self._gaps_ms else 0.0

    def mixed_steps(self) -> dict[MixedStep, float]:
        """Steps of one prompt beside a batch that decodes, and of the batch without one, all without adapters
        and all with, as far as they fit -> median milliseconds."""
        config = self._config
        measured: dict[MixedStep, float] = {}
        names = [adapter.name for adapter in profile_adapters()]
        # Made and brought to the device, as far as it has room, before anything is measured.
        self._answer([1] * len(names), 1, names)
        longest = min(config.prefill_chunk_tokens, config.max_context_tokens - 1)
        prompts = [tokens for tokens in _MIXED_PROMPT_TOKENS if tokens <= longest]
        num_steps = len(prompts) * (_MIXED_STEPS + 1) * (_STEPS_BETWEEN + 2)
        for batch_size in _MIXED_BATCH_SIZES:
            for context_tokens in _MIXED_CONTEXT_TOKENS:
                # The first to decode goes on until the last of the batch does, and all prompts are computed.
                room = max(1, config.max_batch_tokens - batch_size)
                output_tokens = num_steps + 2 * -(-batch_size * context_tokens // room) + 4
                num_tokens = context_tokens + output_tokens
                fits = self._fits(batch_size + 1, max(num_tokens, longest + 1))
                if num_tokens > config.max_context_tokens or not fits:
                    break
                if batch_size + max(prompts) > config.max_batch_tokens:
                    break
                for adapters in ([None], names):
                    lengths = [context_tokens] * batch_size
                    measured |= self._mixed(lengths, output_tokens, prompts, adapters)
        return measured

    def _mixed(
        self,
        context_lengths: Sequence[int],
        output_tokens: int,
        prompts: Sequence[int],
        adapters: Sequence[str | None],
    ) -> dict[MixedStep, float]:
        """Of one batch, whose requests have these adapters by turns, a prompt the first of them: one is sent,
        and when it is answered and some steps are done, the next."""
        self._log.steps.clear()
        batch_size = len(context_lengths)
        self._replica.submit(self._make_requests(context_lengths, output_tokens, adapters))
        while self._replica.num_unfinished and not self._all_decode(batch_size):
            self._poll()
        for prompt_tokens in prompts:
            for _ in range(_MIXED_STEPS + 1):
                self._replica.submit(self._make_requests([prompt_tokens], 1, adapters))
                while self._replica.num_unfinished > batch_size:
                    self._poll()
                for _ in range(_STEPS_BETWEEN):
                    self._poll()
        while self._replica.num_unfinished:
            self._poll()
        of_size = {
            prompt_tokens: [
                step
                for step in self._log.steps
                if step.num_decode_tokens == batch_size and step.num_prefill_tokens == prompt_tokens
            ][1:]
            for prompt_tokens in (0, *prompts)
        }
        measured: dict[MixedStep, float] = {}
        for prompt_tokens, steps in of_size.items():
            if steps:
                ranks = RankSums(steps[0].num_adapters, steps[0].lora_rank_sum, steps[0].lora_rank_max)
                kv_tokens = statistics.median(step.kv_tokens for step in steps)
                measured[MixedStep(prompt_tokens, batch_size, kv_tokens, ranks)] = _median_ms(steps)
        return measured

    def _all_decode(self, batch_size: int) -> bool:
        """Whether the last step did so for all of a batch."""
        steps = self._log.steps
        return bool(steps) and steps[-1].num_decode_tokens == batch_size

    def _decode(self, batch_size: int, prompt_tokens: int, output_tokens: int) -> dict[ContextStep, float]:
        """The steps in which all of the batch decode, as one; empty where there is none."""
        steps = self._answer([prompt_tokens] * batch_size, output_tokens)
        full = [
            step for step in steps if step.num_decode_tokens == batch_size and not step.num_prefill_tokens
        ]
        counted = full[1:] or full
        if not counted:
            return {}
        pairs = itertools.pairwise(full)
        self._gaps_ms += [max(0.0, after.start_ms - before.end_ms) for before, after in pairs]
        kv_tokens = statistics.median(step.kv_tokens for step in counted)
        return {ContextStep(batch_size, kv_tokens): _median_ms(counted)}

    def _fits(self, num_requests: int, num_tokens: int) -> bool:
        """Whether so many requests of so many tokens each can run at once."""
        config = self._config
        num_blocks = num_requests * -(-num_tokens // config.kv_block_tokens)
        return num_requests <= config.max_running and num_blocks <= config.num_kv_blocks

    def _answer(
        self, prompt_lengths: Sequence[int], output_tokens: int, adapters: Sequence[str | None] = (None,)
    ) -> list[StepRecord]:
        """The steps that answer prompts of these lengths, all there from the start.

        Raises:
            InputError: one of them fails.
        """
        self._log.steps.clear()
        self._replica.submit(self._make_requests(prompt_lengths, output_tokens, adapters))
        while self._replica.num_unfinished:
            self._poll()
        return list(self._log.steps)

    def _make_requests(
        self, prompt_lengths: Sequence[int], output_tokens: int, adapters: Sequence[str | None] = (None,)
    ) -> list[Request]:
        sampling = SamplingParams(max_tokens=output_tokens, ignore_eos=True)
        requests: list[Request] = []
        for length, adapter in zip(prompt_lengths, itertools.cycle(adapters), strict=False):
            self._num_requests += 1
            prompt = tuple(next(self._prompts) for _ in range(length))
            name = str(self._num_requests)
            requests.append(
                Request(
                    id=name,
                    line=self._num_requests,
                    prompt_token_ids=prompt,
                    adapter=adapter,
                    sampling=sampling,
                )
            )
        return requests

    def _poll(self) -> None:
        for outcome in self._replica.poll():
            if isinstance(outcome, Failure):
                raise InputError(f"the base cannot be measured: {outcome.message}")


def batch_sizes(max_running: int) -> list[int]:
    """Powers of two below `max_running`, and itself."""
    return [*(2**power for power in range((max_running - 1).bit_length())), max_running]


def _random_prompts(vocab_size: int) -> Iterator[int]:
    """Token ids without end; no two prompts are equal, so that no prefix cache knows them."""
    chosen = random.Random(0)
    while True:
        yield chosen.randrange(vocab_size)


def _median_ms(steps: Sequence[StepRecord]) -> float:
    return statistics.median(step.end_ms - step.start_ms for step in steps)


def _now_ms() -> float:
    return 1000 * time.perf_counter()
