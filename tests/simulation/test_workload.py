"""Requests are drawn as they are described, the same at every rate."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

import pytest

from caraserve_cli.simulation.workload import AdapterMix, Lengths
from tests.perf.h200 import LLAMA2_7B, adapter_bytes
from tests.simulation.fleets import small_workload

MIX = AdapterMix(num_adapters=512, zipf_exponent=1, lora_ranks=(8, 16, 32, 64), modules=("q_proj", "v_proj"))


def test_the_same_requests_at_another_rate() -> None:
    infos = MIX.infos(LLAMA2_7B, 2)
    slow, fast = (
        list(replace(small_workload(num_requests=5000), rate_per_s=rate, adapters=MIX).requests(infos))
        for rate in (10, 20)
    )
    for one, other in zip(slow, fast, strict=True):
        assert replace(one.facts, arrival_ms=0) == replace(other.facts, arrival_ms=0)
        assert one.output_tokens == other.output_tokens
        assert one.facts.arrival_ms == pytest.approx(2 * other.facts.arrival_ms)
    assert slow[-1].facts.arrival_ms == pytest.approx(500_000, rel=0.05)


def test_another_seed_other_requests() -> None:
    first, second = (
        [each.facts.prompt_tokens for each in small_workload(num_requests=50, seed=seed).requests(())]
        for seed in (0, 1)
    )
    assert first != second


def test_lengths_have_their_mean_and_their_bounds() -> None:
    lengths = Lengths(median_tokens=48.1, sigma=1.304, most_tokens=2048)
    spec = replace(small_workload(num_requests=60_000), prompts=lengths, outputs=lengths)
    drawn = [each.facts.prompt_tokens for each in spec.requests(())]
    assert fmean(drawn) == pytest.approx(lengths.mean_tokens, rel=0.03)
    assert (min(drawn), max(drawn)) == (1, 2048)
    ordered = sorted(drawn)
    assert ordered[int(0.9 * len(drawn))] == pytest.approx(256, rel=0.05)
    assert ordered[int(0.99 * len(drawn))] == pytest.approx(1000, rel=0.05)


def test_popularity_falls_with_the_place() -> None:
    """Zipf 1 over 512: 1 / H(512) = 14.7% for the first, half of that for the second."""
    infos = MIX.infos(LLAMA2_7B, 2)
    drawn = [
        each.adapter for each in replace(small_workload(num_requests=30_000), adapters=MIX).requests(infos)
    ]
    shares = [drawn.count(info) / len(drawn) for info in infos[:2]]
    assert shares == pytest.approx([0.1467, 0.0733], rel=0.05)


def test_ranks_come_by_turns_and_sizes_with_them() -> None:
    infos = MIX.infos(LLAMA2_7B, 2)
    assert [info.lora_rank for info in infos[:5]] == [8, 16, 32, 64, 8]
    assert infos[3].num_bytes == adapter_bytes(64) // 2  # of q, k, v, o there


def test_without_adapters_all_ask_for_the_base() -> None:
    assert {each.adapter for each in small_workload(num_requests=10).requests(())} == {None}


def test_equal_lengths() -> None:
    lengths = Lengths(median_tokens=64, sigma=0, most_tokens=512)
    drawn = {each.output_tokens for each in replace(small_workload(), outputs=lengths).requests(())}
    assert drawn == {64}
    assert lengths.mean_tokens == 64
