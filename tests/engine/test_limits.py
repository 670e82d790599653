"""What is too large is refused, to the token and to the byte; what just fits is not."""

from __future__ import annotations

import pytest

from caraserve_cli.config import EngineConfig
from caraserve_cli.core import AdapterInfo, Request, SamplingParams
from caraserve_cli.engine.limits import check_fits, max_output_tokens
from caraserve_cli.errors import RowError, RowErrorCode

CONFIG = EngineConfig(num_kv_blocks=5, kv_block_tokens=4, adapter_memory_bytes=100, max_context_tokens=32)


def make_request(num_prompt: int, max_tokens: int) -> Request:
    sampling = SamplingParams(max_tokens=max_tokens)
    return Request(id="r", line=1, prompt_token_ids=(7,) * num_prompt, sampling=sampling)


def make_adapter(num_bytes: int) -> AdapterInfo:
    return AdapterInfo(name="a", lora_rank=4, num_bytes=num_bytes, identity=b"a")


def test_an_answer_ends_with_the_context() -> None:
    assert max_output_tokens(CONFIG, make_request(30, 1)) == 1
    assert max_output_tokens(CONFIG, make_request(30, 5)) == 2


@pytest.mark.parametrize(
    ("num_prompt", "max_tokens", "adapter_bytes"), [(19, 1, None), (1, 19, None), (4, 4, 100)]
)
def test_what_just_fits(num_prompt: int, max_tokens: int, adapter_bytes: int | None) -> None:
    adapter = None if adapter_bytes is None else make_adapter(adapter_bytes)
    check_fits(CONFIG, make_request(num_prompt, max_tokens), adapter)


@pytest.mark.parametrize(
    ("num_prompt", "max_tokens", "adapter_bytes", "code", "advice"),
    [
        (32, 1, None, RowErrorCode.PROMPT_TOO_LONG, "shorten the prompt"),
        (31, 1, None, RowErrorCode.KV_CAPACITY, "32 tokens and the KV cache holds 20"),
        (19, 2, None, RowErrorCode.KV_CAPACITY, "raise --kv-memory"),
        (1, 10_000, None, RowErrorCode.KV_CAPACITY, "up to 32 tokens"),
        (4, 4, 101, RowErrorCode.ADAPTER_TOO_LARGE, "raise --adapter-memory"),
    ],
)
def test_what_does_not_fit(
    num_prompt: int, max_tokens: int, adapter_bytes: int | None, code: RowErrorCode, advice: str
) -> None:
    adapter = None if adapter_bytes is None else make_adapter(adapter_bytes)
    with pytest.raises(RowError) as caught:
        check_fits(CONFIG, make_request(num_prompt, max_tokens), adapter)
    assert caught.value.code == code
    assert caught.value.request_id == "r"
    assert advice in caught.value.message
