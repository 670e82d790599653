"""The sizes that steps are padded to: a CUDA graph is of one size."""

from __future__ import annotations

# Steps between the sizes of decoding steps, above 8 sequences; up to 8 each power of two is one. Padding
# seldom adds more than a quarter. Chosen, not measured.
_DECODE_STEPS = ((32, 8), (128, 16), (2**31, 32))
# The same for steps with prompts, in tokens. Beyond the last of them a GPU needs as long for a step as the
# host for launching its kernels one by one: H100, Llama-2-7B's shape, with one adapter: 23 ms for launching a
# step of any size, 8 ms for computing one of 128 tokens.
_CHUNK_STEPS = ((64, 16), (256, 32), (512, 64), (1024, 128))
MAX_CHUNK_TOKENS = _CHUNK_STEPS[-1][0]
# Steps of more tokens that CPU workers assist have no graphs: CPU workers pay for short prompts. Chosen, not
# measured.
MAX_ASSISTED_TOKENS = 256


def decode_size(num_sequences: int, max_sequences: int) -> int:
    """The size of a decoding step of so many sequences."""
    if num_sequences <= 8:
        return min(1 << (num_sequences - 1).bit_length(), max_sequences)
    return _padded(num_sequences, max_sequences, _DECODE_STEPS)


def decode_sizes(max_sequences: int) -> list[int]:
    """All sizes of decoding steps of up to `max_sequences`."""
    return sorted({decode_size(count, max_sequences) for count in range(1, max_sequences + 1)})


def chunk_size(num_tokens: int, max_tokens: int) -> int | None:
    """The size of a step of so many tokens, some of them of prompts; None for one that has no graph."""
    return None if num_tokens > MAX_CHUNK_TOKENS else _padded(num_tokens, max_tokens, _CHUNK_STEPS)


def chunk_sizes(max_tokens: int) -> list[int]:
    """All sizes of steps with prompts of up to `max_tokens`."""
    most = min(max_tokens, MAX_CHUNK_TOKENS)
    return sorted({_padded(count, max_tokens, _CHUNK_STEPS) for count in range(1, most + 1)})


def _padded(count: int, most: int, steps: tuple[tuple[int, int], ...]) -> int:
    step = next(step for up_to, step in steps if count <= up_to)
    return min(-(-count // step) * step, most)
