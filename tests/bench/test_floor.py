from __future__ import annotations

import dataclasses

import pytest
import torch

from caraserve_cli.bench.floor import (
    DeviceSpeed,
    FloorCase,
    adapters_seconds,
    decode_step_seconds,
    floor_seconds,
    measure_speed,
    prefill_step_flops,
)
from caraserve_cli.fleet.synthetic_adapter import SyntheticAdapter
from caraserve_cli.model.config import parse_decoder_config
from caraserve_cli.model.decoder_config import DecoderConfig

# 2 layers; hidden 8, 2 heads of 4, 1 KV head, intermediate 16, 10 words.
RAW = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 8,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 16,
    "vocab_size": 10,
    "max_position_embeddings": 64,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
LINEAR = 2 * (8 * 8 + 8 * 4 + 8 * 4 + 8 * 8 + 3 * 8 * 16)
HEAD = 8 * 10
SMALL, LARGE = SyntheticAdapter(1, ("q_proj",), 0), SyntheticAdapter(3, ("q_proj", "k_proj"), 0)
SMALL_WEIGHTS, LARGE_WEIGHTS = 2 * (8 + 8), 2 * 3 * ((8 + 8) + (8 + 4))


@pytest.fixture
def config() -> DecoderConfig:
    return parse_decoder_config(RAW, where="a test")


def parts(case: FloorCase, config: DecoderConfig) -> tuple[float, float]:
    """(FLOPs, bytes), each told from the other by an infinite speed."""
    return (
        floor_seconds(case, config, torch.bfloat16, DeviceSpeed(bytes_per_s=float("inf"), flops_per_s=1.0)),
        floor_seconds(case, config, torch.bfloat16, DeviceSpeed(bytes_per_s=1.0, flops_per_s=float("inf"))),
    )


def test_the_base_alone_by_hand(config: DecoderConfig) -> None:
    case = FloorCase(adapters=[None, None], prompt_tokens=3, output_tokens=3, max_running=9)
    flops, num_bytes = parts(case, config)
    # Queries see 1, 2 and 3 tokens in each of two layers; two products of two operations for 8 elements.
    assert flops == 2 * (2 * 3 * LINEAR + 2 * HEAD + 4 * 8 * 2 * (1 + 2 + 3))
    # Two steps, with contexts of 4 and 5 tokens; keys and values of 4 elements in two layers.
    assert num_bytes == 2 * (LINEAR + HEAD) * 2 + 2 * (4 + 5) * (2 * 2 * 4 * 2)


def test_each_distinct_adapter_is_read_once_a_step(config: DecoderConfig) -> None:
    alone = FloorCase(adapters=[None] * 3, prompt_tokens=3, output_tokens=3, max_running=3)
    mixed = dataclasses.replace(alone, adapters=[SMALL, LARGE, SMALL])
    flops, num_bytes = (a - b for a, b in zip(parts(mixed, config), parts(alone, config), strict=True))
    assert flops == 2 * 3 * (2 * SMALL_WEIGHTS + LARGE_WEIGHTS)
    assert num_bytes == 2 * 2 * (SMALL_WEIGHTS + LARGE_WEIGHTS)


def test_what_does_not_run_at_once_reads_the_weights_again(config: DecoderConfig) -> None:
    one_batch = FloorCase(adapters=[SMALL, LARGE, SMALL], prompt_tokens=3, output_tokens=3, max_running=3)
    flops, num_bytes = parts(one_batch, config)
    more_flops, more_bytes = parts(dataclasses.replace(one_batch, max_running=2), config)
    assert more_flops == flops
    assert more_bytes - num_bytes == 2 * 2 * (LINEAR + HEAD + SMALL_WEIGHTS)


def test_a_sliding_window_bounds_what_is_seen(config: DecoderConfig) -> None:
    case = FloorCase(adapters=[None], prompt_tokens=3, output_tokens=2, max_running=1)
    flops, num_bytes = parts(case, config)
    fewer_flops, fewer_bytes = parts(case, dataclasses.replace(config, sliding_window=(2, None)))
    assert flops - fewer_flops == 4 * 8 * 1
    assert num_bytes - fewer_bytes == 2 * 2 * 4 * 2


def test_both_times_add_up(config: DecoderConfig) -> None:
    case = FloorCase(adapters=[None], prompt_tokens=3, output_tokens=2, max_running=1)
    flops, num_bytes = parts(case, config)
    speed = DeviceSpeed(bytes_per_s=4.0, flops_per_s=2.0)
    assert floor_seconds(case, config, torch.bfloat16, speed) == num_bytes / 4 + flops / 2
    assert case.num_output_tokens == 2


def test_one_output_token_is_prefill_alone(config: DecoderConfig) -> None:
    case = FloorCase(adapters=[SMALL], prompt_tokens=3, output_tokens=1, max_running=1)
    assert parts(case, config)[1] == 0


def test_a_decoding_step_is_a_summand(config: DecoderConfig) -> None:
    """Two steps of a case, with contexts of 4 and 5 tokens, are twice the step with 4.5 on average."""
    speed = DeviceSpeed(bytes_per_s=1.0, flops_per_s=float("inf"))
    adapters = [SMALL, LARGE, SMALL]
    case = FloorCase(adapters=adapters, prompt_tokens=3, output_tokens=3, max_running=3)
    step_s = decode_step_seconds(adapters, 4.5, config, torch.bfloat16, speed)
    assert 2 * step_s == floor_seconds(case, config, torch.bfloat16, speed)


def test_the_adapters_of_a_step_by_hand(config: DecoderConfig) -> None:
    speed = DeviceSpeed(bytes_per_s=2.0, flops_per_s=float("inf"))
    lora_s = adapters_seconds([SMALL, LARGE, None, SMALL], config, torch.bfloat16, speed)
    assert lora_s == SMALL_WEIGHTS + LARGE_WEIGHTS
    with_s, without_s = (
        decode_step_seconds(adapters, 7.0, config, torch.bfloat16, speed)
        for adapters in ([SMALL, LARGE, None, SMALL], [None] * 4)
    )
    assert with_s - without_s == lora_s


def test_the_operations_of_a_prefill_step_are_the_linear_modules(config: DecoderConfig) -> None:
    assert prefill_step_flops(7, config) == 2 * 7 * LINEAR


def test_a_cpu_has_speeds() -> None:
    speed = measure_speed(torch.device("cpu"), torch.float32)
    # Slower than any machine of this century, faster than any of this decade.
    assert 1e8 < speed.bytes_per_s < 1e13
    assert 1e8 < speed.flops_per_s < 1e15
