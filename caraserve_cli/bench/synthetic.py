"""Which made adapters cases have, and prompts of random content. Knows no torch."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

from caraserve_cli.adapters.module_key import module_order
from caraserve_cli.bench.engine_case import EngineCase
from caraserve_cli.core import Request, SamplingParams
from caraserve_cli.fleet.synthetic_adapter import SyntheticAdapter


def adapters_of(case: EngineCase) -> tuple[SyntheticAdapter, ...]:
    """A case's adapters, in order. Cases that use the same sizes share as many of them as they can."""
    copies: Counter[int] = Counter()
    adapters: list[SyntheticAdapter] = []
    modules = tuple(sorted(case.modules, key=lambda module: module_order((0, module))))
    for index in range(case.num_adapters):
        lora_rank = case.lora_ranks[index % len(case.lora_ranks)]
        adapters.append(SyntheticAdapter(lora_rank, modules, copies[lora_rank]))
        copies[lora_rank] += 1
    return tuple(adapters)


def request_adapters(case: EngineCase) -> tuple[SyntheticAdapter | None, ...]:
    """The adapter of each request of a case, None for the base alone."""
    adapters = adapters_of(case) or (None,)
    return tuple(adapters[index % len(adapters)] for index in range(case.num_requests))


def make_requests(case: EngineCase, run: int, vocab_size: int) -> list[Request]:
    """A case's requests. No two runs have equal prompts, so that no prefix cache knows them."""
    prompts = random_prompts(f"{case.name} {run}", case.prompt_tokens, vocab_size)
    return [
        Request(
            id=str(index),
            line=index + 1,
            prompt_token_ids=next(prompts),
            adapter=None if adapter is None else adapter.name,
            sampling=SamplingParams(max_tokens=case.output_tokens, ignore_eos=True),
        )
        for index, adapter in enumerate(request_adapters(case))
    ]


def random_prompts(seed: str, num_tokens: int, vocab_size: int) -> Iterator[tuple[int, ...]]:
    """Prompts of this many tokens without end; equal seeds give equal ones."""
    chosen = random.Random(seed)
    while True:
        yield tuple(chosen.choices(range(vocab_size), k=num_tokens))
