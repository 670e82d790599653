"""How a base and its adapters are cut when several processes hold them together (tensor parallelism).

Megatron's cut: q, k, v, gate and up by output columns, so that a process has whole heads and a part of
the intermediate width; o and down by input columns, so that each process has a summand of the whole
output, and one all-reduce after each of them is all that a layer communicates. The vocabulary is cut by
rows, padded to equal parts.

LoRA is cut like the module it changes. Where the outputs are cut, so is B, and every process has all of
A. Where the inputs are cut, so is A, and every process has all of B: (x_i·A_i)·B is a summand as the
base's x_i·W_i is, and goes with it through the same all-reduce. Adapters add no communication, and take
the same number of bytes everywhere. What is added once, such as o's bias, process 0 has and the others
have as zeros.

Knows sizes, no tensors.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from caraserve_cli.core import BaseShape
from caraserve_cli.errors import OptionError

# Modules whose inputs are cut; of the others the outputs are.
_CUT_INPUTS = ("o_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class Shard:
    """The part of process `tp_index` of `tp_size`."""

    tp_index: int = 0
    tp_size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.tp_index < self.tp_size:
            raise ValueError(f"process {self.tp_index} of {self.tp_size}")

    @property
    def is_whole(self) -> bool:
        return self.tp_size == 1

    def cut(self, whole: BaseShape) -> BaseShape:
        """The base's sizes in one process: its heads and its part of the intermediate width. `vocab_size`
        stays that of the base: everyone's logits are put together.

        Raises:
            OptionError: something does not divide by the number of processes.
        """
        _check_divides(whole, self.tp_size)
        return dataclasses.replace(
            whole,
            num_heads=whole.num_heads // self.tp_size,
            num_kv_heads=whole.num_kv_heads // self.tp_size,
            intermediate_size=whole.intermediate_size // self.tp_size,
        )

    def inputs(self, module: str, width: int) -> slice:
        """Which of a module's inputs this process has; `width` is that of the whole module."""
        return self._part(width) if module in _CUT_INPUTS else slice(0, width)

    def outputs(self, module: str, width: int) -> slice:
        """Which of a module's outputs this process computes; `width` is that of the whole module."""
        return slice(0, width) if module in _CUT_INPUTS else self._part(width)

    def bias(self, module: str, width: int) -> slice:
        """Which elements of a bias this process adds; `width` is that of the whole module."""
        if module in _CUT_INPUTS:
            return slice(0, width if self.tp_index == 0 else 0)
        return self._part(width)

    def vocabulary_rows(self, vocab_size: int) -> int:
        """Rows of everyone's part of the vocabulary, padding included."""
        return -(-vocab_size // self.tp_size)

    def vocabulary(self, vocab_size: int) -> slice:
        """The token ids whose rows this process has."""
        rows = self.vocabulary_rows(vocab_size)
        first = min(self.tp_index * rows, vocab_size)
        return slice(first, min(first + rows, vocab_size))

    def _part(self, width: int) -> slice:
        size = width // self.tp_size
        return slice(self.tp_index * size, (self.tp_index + 1) * size)


WHOLE = Shard()


def _check_divides(whole: BaseShape, tp_size: int) -> None:
    sizes = {
        "attention heads": whole.num_heads,
        "key/value heads": whole.num_kv_heads,
        "columns of the MLP": whole.intermediate_size,
    }
    for what, size in sizes.items():
        if size % tp_size:
            fitting = [n for n in range(1, tp_size) if not any(other % n for other in sizes.values())]
            raise OptionError(
                f"--tensor-parallel: the base has {size} {what}, which {tp_size} processes cannot share "
                f"equally; use {' or '.join(map(str, fitting))}"
            )
