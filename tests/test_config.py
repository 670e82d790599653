from __future__ import annotations

import pytest

from caraserve_cli.config import EngineConfig, parse_size
from caraserve_cli.errors import OptionError


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("4.3GB", 4_300_000_000),
        ("512MiB", 512 * 2**20),
        ("1k", 1000),
        (" 2 Ki ", 2048),
        ("3b", 3),
        ("0.25", 250),
        ("1", 1000),
    ],
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert parse_size("--x", text, 1000) == size_bytes


@pytest.mark.parametrize(
    "text", ["", "GB", "-1GB", "4 apples", "1e9", "1.5", "0", "0GB", "nan", "9" * 400 + "GB"]
)
def test_what_is_no_size_names_the_option(text: str) -> None:
    with pytest.raises(OptionError, match=r"^--kv-memory: "):
        parse_size("--kv-memory", text, 1000)


def test_limits_are_checked() -> None:
    sizes = {"num_kv_blocks": 4, "adapter_memory_bytes": 1, "max_context_tokens": 8}
    assert EngineConfig(**sizes, kv_block_tokens=16).num_kv_tokens == 64
    with pytest.raises(OptionError, match="--prefill-chunk-tokens: must be at least 1"):
        EngineConfig(**sizes, prefill_chunk_tokens=0)
    with pytest.raises(OptionError, match="--max-batch-tokens: 8 is less than --max-running 9"):
        EngineConfig(**sizes, max_batch_tokens=8, max_running=9)
