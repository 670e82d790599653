"""transformers + PEFT as systems to measure: `generate` on static batches, left-padded, with the KV cache.

Imports peft, which only the extra `caraserve[test]` installs. Knows nothing of CaraServe's own engine.
"""

from __future__ import annotations

import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import TypeAlias

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, GenerationConfig, StoppingCriteriaList
from transformers.utils import logging as transformers_logging

from caraserve_cli.bench.system import PEFT_MIXED, PEFT_ONE_ADAPTER, SystemRun
from caraserve_cli.bench.workload import Workload
from caraserve_cli.core import Request
from caraserve_cli.errors import InputError

# A request's id and its output tokens.
Answer: TypeAlias = tuple[str, tuple[int, ...]]

# PEFT's own name for a row without an adapter.
_BASE_ROW = "__base__"


class LoadedPeft:
    """The base with every adapter of the workload in memory, shared by the systems below.

    Raises:
        InputError: the workload names no adapter.
    """

    def __init__(self, workload: Workload) -> None:
        if not workload.adapters:
            raise InputError("no request of the workload names an adapter; PEFT systems need at least one")
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        # PEFT's names become module names, which may hold neither dots nor slashes.
        self._names = {name: f"adapter{number}" for number, name in enumerate(workload.adapters)}
        self._eos_token_ids = workload.eos_token_ids
        with warnings.catch_warnings():
            # About merging adapters, which nobody does here, and about names inside the libraries.
            warnings.simplefilter("ignore")
            self._model = self._load(workload)
        self._model.eval()

    def _load(self, workload: Workload) -> PeftModel:
        base = AutoModelForCausalLM.from_pretrained(workload.base, dtype=workload.dtype)
        torch.nn.Module.to(base, workload.device)
        # Not the checkpoint's: some ask for a repetition penalty, and `generate` obeys even when greedy.
        base.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
            eos_token_id=list(workload.eos_token_ids) or None
        )
        first, *others = workload.adapters
        # Adapters in the base's dtype, as CaraServe has them, instead of always in float32.
        model = PeftModel.from_pretrained(
            base, workload.adapters[first], adapter_name=self._names[first], autocast_adapter_dtype=False
        )
        for name in others:
            model.load_adapter(
                workload.adapters[name], adapter_name=self._names[name], autocast_adapter_dtype=False
            )
        return model

    def answer_mixed(self, batch: Sequence[Request]) -> Iterator[Answer]:
        """(id, output tokens) of requests with any adapters, in one batch."""
        names = [_BASE_ROW if each.adapter is None else self._names[each.adapter] for each in batch]
        return self._generate(batch, adapter_names=names)

    def answer_alike(self, batch: Sequence[Request]) -> Iterator[Answer]:
        """(id, output tokens) of requests that all name the same adapter, or none."""
        adapter = batch[0].adapter
        if adapter is None:
            with self._model.disable_adapter():
                return self._generate(batch)
        self._model.set_adapter(self._names[adapter], inference_mode=True)
        return self._generate(batch)

    def generate(self, batch: Sequence[Request], stopping: StoppingCriteriaList) -> list[list[int]]:
        """The output tokens of each request, with any adapters, in one batch; `stopping` sees every token."""
        names = [_BASE_ROW if each.adapter is None else self._names[each.adapter] for each in batch]
        return self._generate_rows(batch, adapter_names=names, stopping_criteria=stopping)

    def _generate(self, batch: Sequence[Request], **options: object) -> Iterator[Answer]:
        return (
            (request.id, self._answer_in(row[: request.sampling.max_tokens]))
            for request, row in zip(batch, self._generate_rows(batch, **options), strict=True)
        )

    @torch.inference_mode()
    def _generate_rows(self, batch: Sequence[Request], **options: object) -> list[list[int]]:
        """`generate` with these options more; a row is as long as the longest answer."""
        width = max(len(request.prompt_token_ids) for request in batch)
        # Padding is masked, so that any token of the vocabulary serves.
        padded = [[0] * (width - len(each.prompt_token_ids)) + [*each.prompt_token_ids] for each in batch]
        is_prompt = [[0] * (width - len(p)) + [1] * len(p) for p in (each.prompt_token_ids for each in batch)]
        device = self._model.device
        generate: Callable[..., torch.Tensor] = self._model.generate
        output = generate(
            input_ids=torch.tensor(padded, device=device),
            attention_mask=torch.tensor(is_prompt, device=device),
            max_new_tokens=max(request.sampling.max_tokens for request in batch),
            do_sample=False,
            pad_token_id=0,
            **options,
        )
        rows: list[list[int]] = output[:, width:].tolist()
        return rows

    def _answer_in(self, row: Sequence[int]) -> tuple[int, ...]:
        """The row up to and including its first EOS token."""
        ends = (at for at, token_id in enumerate(row, start=1) if token_id in self._eos_token_ids)
        return tuple(row[: next(ends, len(row))])


class PeftSystem:
    """PEFT on static batches; the two systems differ in which requests go together.

    Args:
        name: the system's.
        batches: all batches of a workload's requests, in the order in which they are answered.
        answer_batch: (id, output tokens) of one batch.
    """

    def __init__(
        self,
        name: str,
        batches: Callable[[Sequence[Request]], Iterator[Sequence[Request]]],
        answer_batch: Callable[[Sequence[Request]], Iterator[Answer]],
    ) -> None:
        self.name = name
        self._batches = batches
        self._answer_batch = answer_batch

    def answer(self, workload: Workload) -> SystemRun:
        """Answer every request."""
        answers: dict[str, tuple[int, ...]] = {}
        started_s = time.perf_counter()
        for batch in self._batches(workload.requests):
            answers.update(self._answer_batch(batch))
        return SystemRun(answers=answers, seconds=time.perf_counter() - started_s)


def load_peft_systems(workload: Workload, batch_size: int) -> dict[str, PeftSystem]:
    """Both systems by name, over one base with all adapters.

    Raises:
        InputError: the workload names no adapter.
    """
    peft = LoadedPeft(workload)
    mixed = PeftSystem(PEFT_MIXED, partial(_batches, batch_size=batch_size), peft.answer_mixed)
    alike = PeftSystem(
        PEFT_ONE_ADAPTER, partial(_batches_by_adapter, batch_size=batch_size), peft.answer_alike
    )
    return {mixed.name: mixed, alike.name: alike}


def _batches(requests: Sequence[Request], batch_size: int) -> Iterator[Sequence[Request]]:
    """Requests in input order, whatever their adapters."""
    return (requests[at : at + batch_size] for at in range(0, len(requests), batch_size))


def _batches_by_adapter(requests: Sequence[Request], batch_size: int) -> Iterator[Sequence[Request]]:
    """One adapter after another, in the order of their first requests: all requests of it, in batches."""
    of_adapter: dict[str | None, list[Request]] = defaultdict(list)
    for request in requests:
        of_adapter[request.adapter].append(request)
    return chain.from_iterable(_batches(alike, batch_size) for alike in of_adapter.values())
