"""The one training loop, used for the base model and for every adapter. Knows no tasks and no files."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from prompts import Turn, pack_rows
from torch import Tensor, nn
from torch.nn import functional

LOG = logging.getLogger("make_sample")

_NOT_LEARNT = -100
_MAX_GRADIENT_NORM = 1.0
_FINAL_RATE = 0.02


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast to train.

    Attributes:
        num_steps: optimizer steps.
        batch_rows: conversations in a batch.
        learning_rate: the peak, reached after `warmup_steps`; a half cosine leads down from it.
        weight_decay: of the matrices only.
    """

    num_steps: int
    batch_rows: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float = 0.0

    def rate_factor(self, step: int) -> float:
        """The learning rate of `step`, as a fraction of the peak."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.num_steps - self.warmup_steps)
        return _FINAL_RATE + (1 - _FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True, slots=True)
class Corpus:
    """Conversations on the training device: `token_ids` and `labels`, both [rows, tokens]."""

    token_ids: Tensor
    labels: Tensor

    @classmethod
    def of(cls, turns: Iterable[Turn], num_rows: int, num_tokens: int, device: torch.device) -> Corpus:
        token_ids, is_learnt = pack_rows(turns, num_rows, num_tokens)
        labels: NDArray[np.int16] = np.where(is_learnt, token_ids, np.int16(_NOT_LEARNT))
        return cls(torch.from_numpy(token_ids).to(device), torch.from_numpy(labels).to(device))


def train(model: nn.Module, corpus: Corpus, schedule: Schedule, seed: int) -> float:
    """Trains the parameters of `model` that require gradients, in place; returns the last mean loss."""
    device = corpus.token_ids.device
    rows = torch.Generator(device=device).manual_seed(seed)
    optimizer = _optimizer(model, schedule)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule.rate_factor)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    log_every = max(1, schedule.num_steps // 10)
    recent: list[Tensor] = []
    model.train()
    for step in range(1, schedule.num_steps + 1):
        batch = torch.randint(len(corpus.token_ids), (schedule.batch_rows,), generator=rows, device=device)
        loss = _loss(model, corpus.token_ids[batch].long(), corpus.labels[batch].long())
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained, _MAX_GRADIENT_NORM)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        recent.append(loss.detach())
        if step % log_every == 0:
            LOG.info(
                "  step %d of %d: loss %.4f", step, schedule.num_steps, torch.stack(recent).mean().item()
            )
            recent = recent[-1:]
    model.eval()
    return torch.stack(recent).mean().item()


def _optimizer(model: nn.Module, schedule: Schedule) -> torch.optim.AdamW:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": schedule.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=schedule.learning_rate,
        betas=(0.9, 0.98),
        fused=trained[0].is_cuda,
    )


def _loss(model: nn.Module, token_ids: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of the next token where it is to be learnt. Rows are padded at the end, so the
    causal mask alone keeps padding out of sight."""
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=token_ids.is_cuda):
        logits: Tensor = model(input_ids=token_ids, use_cache=False).logits
    return functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=_NOT_LEARNT
    )
