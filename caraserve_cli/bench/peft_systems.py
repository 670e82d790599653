"""transformers + PEFT as systems to measure: `generate` on static batches, left-padded, with the KV cache.

Imports peft, which only the extra `caraserve[test]` installs. Knows nothing of CaraServe's own engine.
"""

from __future__ import annotations

import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from caraserve_cli.bench.system import PEFT_MIXED, PEFT_ONE_ADAPTER, SystemRun
from caraserve_cli.bench.workload import Workload
from caraserve_cli.core import Request
from caraserve_cli.errors import InputError

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
        base.generation_config.eos_token_id = list(workload.eos_token_ids) or None
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

    def answer_mixed(self, batch: Sequence[Request]) -> Iterator[tuple[str, tuple[int, ...]]]:
        """(id, output tokens) of requests with any adapters, in one batch."""
        names = [_BASE_ROW if each.adapter is None else self._names[each.adapter] for each in batch]
        return self._generate(batch, adapter_names=names)

    def answer_alike(self, batch: Sequence[Request]) -> Iterator[tuple[str, tuple[int, ...]]]:
        """(id, output tokens) of requests that all name the same adapter, or none."""
        adapter = batch[0].adapter
        if adapter is None:
            with self._model.disable_adapter():
                return self._generate(batch)
        self._model.set_adapter(self._names[adapter], inference_mode=True)
        return self._generate(batch)

    @torch.inference_mode()
    def _generate(
        self, batch: Sequence[Request], adapter_names: list[str] | None = None
    ) -> Iterator[tuple[str, tuple[int, ...]]]:
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
            **({} if adapter_names is None else {"adapter_names": adapter_names}),
        )
        rows: list[list[int]] = output[:, width:].tolist()
        return (
            (request.id, self._answer_in(row[: request.sampling.max_tokens]))
            for request, row in zip(batch, rows, strict=True)
        )

    def _answer_in(self, row: Sequence[int]) -> tuple[int, ...]:
        """The row up to and including its first EOS token."""
        ends = (at for at, token_id in enumerate(row, start=1) if token_id in self._eos_token_ids)
        return tuple(row[: next(ends, len(row))])


class PeftMixed:
    """Batches of requests in input order; each row has its own adapter (PEFT's `adapter_names`)."""

    name = PEFT_MIXED

    def __init__(self, peft: LoadedPeft, batch_size: int) -> None:
        self._peft = peft
        self._batch_size = batch_size

    def answer(self, workload: Workload) -> SystemRun:
        """Answer every request."""
        answers: dict[str, tuple[int, ...]] = {}
        started_s = time.perf_counter()
        for batch in _batches(workload.requests, self._batch_size):
            answers.update(self._peft.answer_mixed(batch))
        return SystemRun(answers=answers, seconds=time.perf_counter() - started_s)


class PeftOneAdapter:
    """One adapter after another, in the order of their first requests: all requests of it, in batches."""

    name = PEFT_ONE_ADAPTER

    def __init__(self, peft: LoadedPeft, batch_size: int) -> None:
        self._peft = peft
        self._batch_size = batch_size

    def answer(self, workload: Workload) -> SystemRun:
        """Answer every request."""
        answers: dict[str, tuple[int, ...]] = {}
        started_s = time.perf_counter()
        of_adapter: dict[str | None, list[Request]] = defaultdict(list)
        for request in workload.requests:
            of_adapter[request.adapter].append(request)
        for requests in of_adapter.values():
            for batch in _batches(requests, self._batch_size):
                answers.update(self._peft.answer_alike(batch))
        return SystemRun(answers=answers, seconds=time.perf_counter() - started_s)


def _batches(requests: Sequence[Request], batch_size: int) -> Iterator[Sequence[Request]]:
    return (requests[at : at + batch_size] for at in range(0, len(requests), batch_size))
