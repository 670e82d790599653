"""How long CPU workers take for one op: the LoRA part of one fused projection of one layer.

Workers are given modules and runs of tokens (`op_cut`), and the one with most work decides: it reads the
weights of its own modules from memory, and multiplies its own tokens. Knows nothing of how the rows come and
go: that is the exchange's, a `LinkModel`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from caraserve_cli.perf.least_squares import FitQuality, fit_costs
from caraserve_cli.perf.op_cut import OpCut

# Where tokens cost next to nothing, one worker takes them all: these are more than a prompt's chunk has.
_MOST_TOKENS_PER_WORKER = 4096


class CpuLoraOp(NamedTuple):
    """One op: `num_tokens` rows, cut among `num_workers`, which is how many the op gets: `OpCut.num_shares`.
    `in_width` is the input's width, `out_widths` are those of the modules that the adapter changes, each with
    rank `lora_rank`."""

    num_tokens: int
    in_width: int
    out_widths: tuple[int, ...]
    lora_rank: int
    num_workers: int

    @property
    def terms(self) -> tuple[float, ...]:
        """What the time grows with, in the order of `CpuLoraModel`'s fields."""
        cut = OpCut.of(self.num_tokens, len(self.out_widths), self.num_workers, tokens_per_worker=1)
        worker_tokens = -(-self.num_tokens // cut.num_row_runs)
        columns = (cut.share(column).modules for column in range(cut.num_columns))
        out_widths = max((self.out_widths[own.start : own.stop] for own in columns), key=self._weights)
        weights = self._weights(out_widths)
        return (
            1.0,
            float(len(out_widths)),
            float(worker_tokens * weights),
            float(weights),
            float(worker_tokens * (self.in_width + sum(out_widths))),
            float(self.num_workers - 1),
        )

    def _weights(self, out_widths: Sequence[int]) -> int:
        """Elements of A and B of modules of these widths."""
        return self.lora_rank * (self.in_width * len(out_widths) + sum(out_widths))


@dataclass(frozen=True, slots=True)
class CpuLoraModel:
    """The time of an op is a sum of costs, in milliseconds.

    Attributes:
        op_ms: of any op.
        module_ms: of each module of the worker with most work: its own products are called.
        product_ms: of each multiplication of that worker.
        weight_ms: of each weight that it reads.
        element_ms: of each element of its x and result.
        worker_ms: of each worker beyond the first.
    """

    op_ms: float
    module_ms: float
    product_ms: float
    weight_ms: float
    element_ms: float
    worker_ms: float
    quality: FitQuality

    @staticmethod
    def fit(ops: Sequence[CpuLoraOp], times_ms: Sequence[float]) -> CpuLoraModel:
        """The model through ops of several sizes, at least six.

        Args:
            ops: what was measured.
            times_ms: of each op, above 0.

        Raises:
            ProfileError: the points follow no such model.
        """
        op_ms, module_ms, product_ms, weight_ms, element_ms, worker_ms = fit_costs(
            [op.terms for op in ops], times_ms
        )
        unjudged = FitQuality(1.0, 0.0, 0)
        model = CpuLoraModel(op_ms, module_ms, product_ms, weight_ms, element_ms, worker_ms, unjudged)
        quality = FitQuality.of([model.predict_ms(op) for op in ops], times_ms)
        quality.require("LoRA on the CPU")
        return replace(model, quality=quality)

    def predict_ms(self, op: CpuLoraOp) -> float:
        """Milliseconds from the first worker's start to the last one's end, the weights being in no cache."""
        one, modules, products, weights, elements, further = op.terms
        return (
            self.op_ms * one
            + self.module_ms * modules
            + self.product_ms * products
            + self.weight_ms * weights
            + self.element_ms * elements
            + self.worker_ms * further
        )

    def tokens_per_worker(self, in_width: int, out_width: int, lora_rank: int) -> int:
        """c of the paper's ⌈L / c⌉ workers, here of one module: the fewest tokens a worker at which a further
        worker saves what it costs.

        Two workers of c tokens in place of one of 2 · c save the time of c tokens, and cost what every worker
        pays whatever its tokens: reading the weights, and waking up.
        """
        one, modules, products, weights, elements, _ = CpuLoraOp(
            1, in_width, (out_width,), lora_rank, 1
        ).terms
        token_ms = self.product_ms * products + self.element_ms * elements
        worker_ms = self.op_ms * one + self.module_ms * modules + self.weight_ms * weights + self.worker_ms
        if token_ms * _MOST_TOKENS_PER_WORKER <= worker_ms:
            return _MOST_TOKENS_PER_WORKER
        return max(1, math.ceil(worker_ms / token_ms))
