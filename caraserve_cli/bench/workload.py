"""From a recipe's files to requests that every system can answer in the same way.

All prompts are tokenised here, so that no system is measured doing it. Knows no system.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from caraserve_cli.bench.recipe import Recipe
from caraserve_cli.core import Request, SamplingParams
from caraserve_cli.errors import BaseModelError, InputError, RowError
from caraserve_cli.fleet.options import ReplicaOptions
from caraserve_cli.fleet.surroundings import Surroundings
from caraserve_cli.job.prepare import Preparer
from caraserve_cli.requests.row import RowDefaults
from caraserve_cli.requests.source import LineSource
from caraserve_cli.requests.stream import RejectedRow, RowStream


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Requests that are all there from the start, and what answers them.

    Attributes:
        base: the folder of the base's checkpoint.
        adapters: folder of each adapter that a request names, in the order in which they are first named.
        requests: all greedy, without stop strings or penalties; prompt and answer fit the context.
        eos_token_ids: each of them ends an answer; empty where answers have a fixed length.
    """

    base: Path
    adapters: Mapping[str, Path]
    requests: tuple[Request, ...]
    eos_token_ids: tuple[int, ...]
    device: torch.device
    dtype: torch.dtype
    device_description: str

    @property
    def num_prompt_tokens(self) -> int:
        return sum(len(request.prompt_token_ids) for request in self.requests)


def replica_options(recipe: Recipe) -> ReplicaOptions:
    """What a recipe means for a replica of CaraServe."""
    defaults = ReplicaOptions(base=recipe.workload.base)
    return dataclasses.replace(
        defaults,
        adapter_roots=recipe.workload.adapter_roots,
        device=recipe.device,
        dtype=recipe.dtype,
        max_running=recipe.batch_size,
        # Each running request needs one token a step.
        max_batch_tokens=max(defaults.max_batch_tokens, recipe.batch_size),
    )


def load_workload(recipe: Recipe) -> Workload:
    """Read, check and tokenise the requests.

    Raises:
        OptionError: the recipe's device or dtype cannot be had here.
        InputError: a file cannot be read, or a row cannot be answered by every system.
    """
    surroundings = Surroundings.prepare(replica_options(recipe))
    base = surroundings.base
    if base.folder is None:
        raise BaseModelError(f"base model '{base.name}' has no checkpoint; a benchmark needs real weights")
    requests = tuple(_read_requests(recipe, surroundings))
    if not requests:
        raise InputError(f"'{recipe.workload.requests}' has no requests; there is nothing to measure")
    names = dict.fromkeys(request.adapter for request in requests if request.adapter is not None)
    return Workload(
        base=base.folder,
        adapters={name: surroundings.library.path(name) for name in names},
        requests=requests,
        eos_token_ids=base.config.eos_token_ids if recipe.workload.output_tokens is None else (),
        device=surroundings.device,
        dtype=surroundings.dtype,
        device_description=surroundings.device_description,
    )


def _read_requests(recipe: Recipe, surroundings: Surroundings) -> Iterator[Request]:
    """The requests; a row that is refused ends it, since systems must not be measured on different ones."""
    config = surroundings.base.config
    preparer = Preparer(surroundings.tokenizer, surroundings.library, config.shape.vocab_size, run_seed=0)
    spec = recipe.workload
    with LineSource(str(spec.requests)) as source:
        for row in RowStream(source, RowDefaults(), spec.limit):
            prepared = row if isinstance(row, RejectedRow) else preparer.prepare([row])[0]
            if isinstance(prepared, RejectedRow):
                raise InputError(f"'{spec.requests}', line {prepared.line}: {prepared.message}")
            reason = _why_not_comparable(prepared)
            if spec.output_tokens is not None:
                sampling = SamplingParams(max_tokens=spec.output_tokens, ignore_eos=True)
                prepared = dataclasses.replace(prepared, sampling=sampling)
            try:
                surroundings.check(prepared)
            except RowError as error:
                raise InputError(f"'{spec.requests}', line {prepared.line}: {error.message}") from error
            reason = reason or _why_too_long(prepared, config.context_tokens)
            if reason is not None:
                raise InputError(f"'{spec.requests}', line {prepared.line}: {reason}")
            yield prepared


def _why_not_comparable(request: Request) -> str | None:
    """Why systems could answer a request differently and both be right; None if they cannot."""
    plain = dataclasses.asdict(SamplingParams())
    for key, value in dataclasses.asdict(request.sampling).items():
        if key not in ("max_tokens", "seed") and value != plain[key]:
            return f"{key} is {value!r}; systems are compared on plain greedy answers, so leave it out"
    if request.arrival_ms:
        return "arrival_ms is not 0; this benchmark has all requests at the start, so leave it out"
    return None


def _why_too_long(request: Request, context_tokens: int) -> str | None:
    """Why the context would end an answer; systems do that differently. None if it would not."""
    num_tokens = len(request.prompt_token_ids) + request.sampling.max_tokens
    if num_tokens > context_tokens:
        return f"prompt and max_tokens take {num_tokens} tokens, the context has {context_tokens}"
    return None
