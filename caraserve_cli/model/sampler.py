"""From logits to tokens.

Every row is computed by itself and draws from its own counter-based random numbers, so an answer depends on
its request's seed and on nothing else in the batch, on no device, and on no earlier call.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from typing import NamedTuple

import torch
from torch import Tensor

from caraserve_cli.core import SamplingParams, Sequence, TokenLogprobs

_MASK64 = (1 << 64) - 1
# Below this the distribution is all on one token, and a division would overflow.
_MIN_TEMPERATURE = 1e-5


class Sampled(NamedTuple):
    """One chosen token; `logprobs` is None unless the request asked for them."""

    token_id: int
    logprobs: TokenLogprobs | None


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that belongs to (seed, position).

    SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), applied to the seed and then to seed and position, so that
    neighbouring seeds and positions share nothing.
    """
    return (_splitmix64(_splitmix64(seed & _MASK64) ^ position) >> 11) * 2.0**-53


def _splitmix64(state: int) -> int:
    z = (state + 0x9E3779B97F4A7C15) & _MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
    return z ^ (z >> 31)


def needs_lockstep(sampling: SamplingParams) -> bool:
    """Whether a token can only be chosen where the host knows all before it, and is looked at at once."""
    return _has_penalties(sampling) or sampling.logprobs > 0


def sample(logits: Tensor, sequences: SequenceOf[Sequence]) -> list[Sampled]:
    """Choose the next token of each sequence, and describe it where the request asks for that.

    Args:
        logits: [sequences, vocabulary], float32; not kept.
        sequences: one per row.
    """
    logprobs = _logprob_rows(logits, sequences)
    chosen: list[int] = choose_tokens(logits, sequences).tolist()
    return [
        Sampled(token_id, _describe(logprobs[i], token_id, sequences[i]) if i in logprobs else None)
        for i, token_id in enumerate(chosen)
    ]


def choose_tokens(logits: Tensor, sequences: SequenceOf[Sequence]) -> Tensor:
    """The next token of each sequence, [sequences] int64, where the logits are.

    Args:
        logits: [sequences, vocabulary], float32; not kept.
        sequences: one per row.
    """
    adjusted = _penalise(logits, sequences)
    token_ids = adjusted.argmax(dim=-1)
    random_rows = [i for i, s in enumerate(sequences) if s.request.sampling.temperature > 0]
    if random_rows:
        rows = _on_device(random_rows, torch.int64, logits.device)
        drawn = _draw(adjusted.index_select(0, rows), [sequences[i] for i in random_rows])
        token_ids.index_copy_(0, rows, drawn)
    return token_ids


def _penalise(logits: Tensor, sequences: SequenceOf[Sequence]) -> Tensor:
    """Repetition penalty as transformers defines it (prompt and output), presence and frequency as OpenAI
    does (output only)."""
    adjusted = logits
    for row, sequence in enumerate(sequences):
        sampling = sequence.request.sampling
        if not _has_penalties(sampling):
            continue
        if adjusted is logits:
            adjusted = logits.clone()
        scores = adjusted[row]
        if sampling.repetition_penalty != 1.0:
            seen = torch.tensor(sorted(set(sequence.token_ids)), device=logits.device)
            values = scores[seen]
            penalty = sampling.repetition_penalty
            scores[seen] = torch.where(values < 0, values * penalty, values / penalty)
        output = torch.tensor(sequence.output_token_ids, dtype=torch.int64, device=logits.device)
        counts = torch.bincount(output, minlength=scores.shape[0])
        scores -= sampling.frequency_penalty * counts + sampling.presence_penalty * (counts > 0)
    return adjusted


def _has_penalties(sampling: SamplingParams) -> bool:
    return (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty) != (
        1.0,
        0.0,
        0.0,
    )


def _draw(logits: Tensor, sequences: SequenceOf[Sequence]) -> Tensor:
    """Temperature, top-k, top-p, min-p, in transformers' order, then the inverse of the distribution at one
    uniform number a row. Ties are ordered by token id. Returns [rows]."""
    sampling, vocabulary = [s.request.sampling for s in sequences], logits.shape[1]
    settings = [
        [max(s.temperature, _MIN_TEMPERATURE) for s in sampling],
        [float(s.top_k or vocabulary) for s in sampling],
        [s.min_p for s in sampling],
        [s.top_p for s in sampling],
        [uniform(s.request.sampling.seed or 0, s.num_tokens) for s in sequences],
    ]
    # In one copy: each waits for its turn among adapters' copies.
    temperature, top_k, min_p, top_p, draws = _on_device(settings, torch.float64, logits.device)[:, :, None]
    ordered, token_ids = logits.double().div_(temperature).sort(dim=-1, descending=True, stable=True)
    place = torch.arange(vocabulary, device=logits.device)[None, :]
    probs = ordered.masked_fill_(place >= top_k, -torch.inf).softmax(dim=-1)
    before = probs.cumsum(dim=-1) - probs
    too_unlikely = probs < probs[:, :1] * min_p
    probs = probs.masked_fill((before >= top_p) | too_unlikely, 0.0)
    # The most likely token always stays, whatever rounding did to the bounds.
    probs[:, 0] = torch.where(probs[:, 0] > 0, probs[:, 0], 1.0)
    cumulated = probs.cumsum(dim=-1)
    # The first place whose cumulated mass exceeds the draw; never one past the last token that has mass.
    places = torch.searchsorted(cumulated, draws * cumulated[:, -1:], right=True)
    last_possible = (probs > 0).sum(dim=-1, keepdim=True) - 1
    return token_ids.gather(1, torch.minimum(places, last_possible)).squeeze(1)


def _on_device(
    values: SequenceOf[float] | SequenceOf[SequenceOf[float]], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """`values` on the device of the logits; through pinned memory, so that the host does not wait for it."""
    on_host = torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda")
    return on_host.to(device, non_blocking=True)


def _logprob_rows(logits: Tensor, sequences: SequenceOf[Sequence]) -> dict[int, Tensor]:
    return {
        i: logits[i].log_softmax(dim=-1) for i, s in enumerate(sequences) if s.request.sampling.logprobs > 0
    }


def _describe(logprobs: Tensor, token_id: int, sequence: Sequence) -> TokenLogprobs:
    top = logprobs.topk(min(sequence.request.sampling.logprobs, logprobs.shape[0]))
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return TokenLogprobs(token_id, float(logprobs[token_id]), tuple(pairs))
