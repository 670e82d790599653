from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from caraserve_cli.core import Request, SamplingParams, Sequence, Timings
from caraserve_cli.model.sampler import sample, uniform

VOCABULARY = 50


def make_sequence(
    sampling: SamplingParams, prompt: tuple[int, ...] = (1, 2, 3), output: tuple[int, ...] = ()
) -> Sequence:
    request = Request(id="r", line=1, prompt_token_ids=prompt, sampling=sampling)
    return Sequence(request, Timings(0.0), [*prompt, *output], len(prompt), sampling.max_tokens)


def make_logits(num_rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 2


def frequencies(sampling: dict[str, float], logits: torch.Tensor, num_draws: int) -> torch.Tensor:
    sequences = [make_sequence(SamplingParams(seed=seed, **sampling)) for seed in range(num_draws)]  # type: ignore[arg-type]
    drawn = sample(logits.expand(num_draws, -1), sequences)
    counts = torch.bincount(torch.tensor([token.token_id for token in drawn]), minlength=VOCABULARY)
    return counts / num_draws


@pytest.mark.parametrize(
    ("sampling", "warpers"),
    [
        ({"temperature": 1.0}, []),
        ({"temperature": 0.6}, [TemperatureLogitsWarper(0.6)]),
        ({"temperature": 1.5, "top_k": 5}, [TemperatureLogitsWarper(1.5), TopKLogitsWarper(5)]),
        ({"temperature": 1.0, "top_p": 0.7}, [TopPLogitsWarper(0.7)]),
        ({"temperature": 1.0, "min_p": 0.2}, [MinPLogitsWarper(0.2)]),
        (
            {"temperature": 1.3, "top_k": 12, "top_p": 0.8, "min_p": 0.1},
            [
                TemperatureLogitsWarper(1.3),
                TopKLogitsWarper(12),
                TopPLogitsWarper(0.8),
                MinPLogitsWarper(0.1),
            ],
        ),
    ],
    ids=["plain", "temperature", "top-k", "top-p", "min-p", "all"],
)
def test_draws_follow_transformers_distribution(sampling: dict[str, float], warpers: list[object]) -> None:
    """20,000 draws: the frequency of every token within 5 standard deviations of its probability."""
    logits, num_draws = make_logits(1), 20_000
    warped = LogitsProcessorList(warpers)(torch.tensor([[1]]), logits.clone())
    expected = warped.softmax(-1)[0]
    measured = frequencies(sampling, logits, num_draws)
    assert torch.equal(measured[expected == 0], torch.zeros(int((expected == 0).sum())))
    deviation = (expected * (1 - expected) / num_draws).sqrt()
    assert bool(((measured - expected).abs() <= 5 * deviation + 1e-9).all())


def test_greedy_is_the_largest_logit_and_ties_go_to_the_lowest_id() -> None:
    logits = torch.zeros(1, VOCABULARY)
    logits[0, [4, 9]] = 1.0
    assert sample(logits, [make_sequence(SamplingParams())])[0].token_id == 4


def test_an_answer_does_not_depend_on_its_neighbours() -> None:
    kinds = [
        SamplingParams(temperature=1.0, seed=5),
        SamplingParams(),
        SamplingParams(temperature=0.7, top_p=0.5, seed=6, repetition_penalty=1.5),
        SamplingParams(temperature=2.0, top_k=7, seed=5, presence_penalty=1.0),
    ]
    logits = make_logits(len(kinds))
    sequences = [make_sequence(kind, output=(3, 3, 8)) for kind in kinds]
    together = [token.token_id for token in sample(logits.clone(), sequences)]
    alone = [sample(logits[i : i + 1].clone(), [s])[0].token_id for i, s in enumerate(sequences)]
    assert together == alone


def test_same_seed_same_draw_and_position_changes_it() -> None:
    logits = torch.zeros(1, 5000)
    first, again = (
        sample(logits, [make_sequence(SamplingParams(temperature=1.0, seed=9))])[0].token_id for _ in "ab"
    )
    later = sample(logits, [make_sequence(SamplingParams(temperature=1.0, seed=9), output=(1,))])[0].token_id
    assert first == again != later


@given(st.integers(0, 2**64 - 1), st.integers(0, 10**6))
def test_uniform_numbers_are_in_range(seed: int, position: int) -> None:
    assert 0.0 <= uniform(seed, position) < 1.0


def test_uniform_numbers_are_uniform() -> None:
    draws = torch.tensor([uniform(seed, position) for seed in range(100) for position in range(100)])
    counts = torch.histc(draws, bins=20, min=0, max=1)
    assert float((counts - 500).abs().max()) < 5 * math.sqrt(500)


def test_repetition_penalty_is_transformers() -> None:
    logits = make_logits(1)
    token_ids = [7, 7, 12, 30]
    expected = RepetitionPenaltyLogitsProcessor(1.8)(torch.tensor([token_ids]), logits.clone())
    sequence = make_sequence(
        SamplingParams(repetition_penalty=1.8), prompt=tuple(token_ids[:2]), output=tuple(token_ids[2:])
    )
    assert sample(logits, [sequence])[0].token_id == int(expected.argmax())
    assert int(expected.argmax()) != int(logits.argmax()) or int(logits.argmax()) not in token_ids


def test_presence_and_frequency_penalties_count_the_output_only() -> None:
    logits = torch.zeros(1, VOCABULARY)
    logits[0, :4] = torch.tensor([4.0, 3.5, 3.2, 3.0])

    def choose(sampling: SamplingParams) -> int:
        sequence = make_sequence(sampling, prompt=(0, 0, 0), output=(1, 1, 2))
        return sample(logits.clone(), [sequence])[0].token_id

    assert choose(SamplingParams()) == 0, "the prompt's token 0 is not penalised"
    logits[0, 0] = 0.0
    assert choose(SamplingParams(frequency_penalty=0.2)) == 1  # 3.1 against 3.0 and 3.0
    assert choose(SamplingParams(frequency_penalty=0.3)) == 3  # 2.9 against 2.9 and 3.0
    assert choose(SamplingParams(presence_penalty=0.4)) == 1  # 3.1 against 2.8 and 3.0
    assert choose(SamplingParams(presence_penalty=0.6)) == 3  # 2.9 against 2.6 and 3.0


def test_logprobs_are_of_the_model_not_of_the_penalised_scores() -> None:
    logits = make_logits(1)
    expected = logits[0].log_softmax(-1)
    sequence = make_sequence(SamplingParams(logprobs=3, presence_penalty=2.0), output=(4,))
    sampled = sample(logits.clone(), [sequence])[0]
    assert sampled.logprobs is not None
    assert sampled.logprobs.logprob == pytest.approx(float(expected[sampled.token_id]))
    assert [t for t, _ in sampled.logprobs.top] == expected.topk(3).indices.tolist()
    assert sample(logits, [make_sequence(SamplingParams())])[0].logprobs is None


@pytest.mark.parametrize("temperature", [1e-300, 1e-5, 100.0])
def test_extreme_temperatures_draw_something_possible(temperature: float) -> None:
    logits = make_logits(1)
    token_id = sample(logits, [make_sequence(SamplingParams(temperature=temperature, seed=1))])[0].token_id
    assert 0 <= token_id < VOCABULARY
    if temperature < 1e-4:
        assert token_id == int(logits.argmax())
