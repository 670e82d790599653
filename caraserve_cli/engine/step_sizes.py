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
# The same of steps beside others: longer prompts are computed in chunks of so many tokens.
MAX_BESIDE_TOKENS = 512
_LEAST_BESIDE_TOKENS = 16


def decode_size(num_sequences: int, max_sequences: int) -> int:
    """The size of a decoding step of so many sequences."""
    if num_sequences <= 8:
        return min(1 << (num_sequences - 1).bit_length(), max_sequences)
    return _padded(num_sequences, max_sequences, _DECODE_STEPS)


def decode_sizes(max_sequences: int) -> list[int]:
    """All sizes of decoding steps of up to `max_sequences`."""
    return sorted({decode_size(count, max_sequences) for count in range(1, max_sequences + 1)})


def chunk_sizes(max_tokens: int) -> list[int]:
    """All sizes of steps with prompts of up to `max_tokens`; larger ones have no graphs."""
    most = min(max_tokens, MAX_CHUNK_TOKENS)
    return sorted({_padded(count, max_tokens, _CHUNK_STEPS) for count in range(1, most + 1)})


def beside_sizes(max_tokens: int) -> list[int]:
    """All sizes of steps of one prompt or few, of up to `max_tokens`, which go on beside others: fewer, for
    they are bound by the weights of the base, or by what they wait for."""
    most = min(max_tokens, MAX_BESIDE_TOKENS)
    powers = [1 << bit for bit in range(_LEAST_BESIDE_TOKENS.bit_length() - 1, most.bit_length())]
    return sorted({*(size for size in powers if size <= most), most})


def _padded(count: int, most: int, steps: tuple[tuple[int, int], ...]) -> int:
    step = next(step for up_to, step in steps if count <= up_to)
    return min(-(-count // step) * step, most)
