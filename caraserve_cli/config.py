"""Frozen configuration of an engine, and the units that options are written in.

Knows no defaults that depend on a machine: `fleet.local` measures the machine and decides those.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

from caraserve_cli.errors import OptionError

_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?b?)\s*$", re.IGNORECASE)
_DECIMAL_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY_UNITS = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_TOO_LARGE_BYTES = 2**63


def parse_size(option: str, text: str, total_bytes: int) -> int:
    """Bytes meant by `text`: `4.3GB`, `512MiB`, or a fraction of `total_bytes` such as `0.5`.

    Raises:
        OptionError: `text` is none of these, or not above zero; the message names `option`.
    """
    match = _SIZE.match(text)
    if match is None:
        raise OptionError(
            f"{option}: '{text}' is not a size; write it as 4.3GB, 512MiB or a fraction such as 0.5"
        )
    number, unit = float(match[1]), match[2].lower().removesuffix("b")
    if not match[2]:
        if number > 1:
            raise OptionError(f"{option}: '{text}' has no unit; write {text}GB, or a fraction up to 1")
        size = number * total_bytes
    else:
        size = number * (_BINARY_UNITS.get(unit) or _DECIMAL_UNITS[unit])
    if size >= _TOO_LARGE_BYTES:
        raise OptionError(f"{option}: '{text}' is more than any memory; give a smaller size")
    size_bytes = int(size)
    if size_bytes <= 0:
        raise OptionError(f"{option}: '{text}' is no memory at all; give a size above zero")
    return size_bytes


# A CUDA kernel's second grid dimension, in which attention counts sequences, goes no further.
MOST_RUNNING = 65_535


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Sizes and limits of one engine. `drop_missed`: whether a request whose deadline has passed becomes a
    failure; it is answered late otherwise.

    Raises:
        OptionError: a value is out of range; the message names the field's option.
    """

    num_kv_blocks: int
    adapter_memory_bytes: int
    max_context_tokens: int
    kv_block_tokens: int = 16
    max_running: int = 256
    max_batch_tokens: int = 2048
    prefill_chunk_tokens: int = 512
    prefix_caching: bool = True
    max_resident_adapters: int = 1024
    drop_missed: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, bool) and value < 1:
                raise OptionError(f"--{field.name.replace('_', '-')}: must be at least 1")
        if self.max_running > MOST_RUNNING:
            raise OptionError(f"--max-running: at most {MOST_RUNNING} requests can run at once")
        if self.max_batch_tokens < self.max_running:
            raise OptionError(
                f"--max-batch-tokens: {self.max_batch_tokens} is less than --max-running {self.max_running}; "
                "every running request needs one token a step"
            )

    @property
    def num_kv_tokens(self) -> int:
        """Tokens that the KV cache can hold."""
        return self.num_kv_blocks * self.kv_block_tokens
