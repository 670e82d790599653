"""How long the device waits for one op of CPU workers, which is the LoRA part of one fused projection of one
layer: from sending its rows until the results are added.

Rows go there and results come back, however the op is shared. Workers are given modules, runs of tokens and
slices of modules (`op_cut`), and the one with most work decides: it reads its own weights from memory, and
multiplies its own tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from caraserve_cli.perf.least_squares import FitQuality, fit_costs
from caraserve_cli.perf.op_cut import OpCut

# Where tokens cost next to nothing, one worker takes them all: these are more than a prompt's chunk has.
_MOST_TOKENS_PER_WORKER = 4096


class CpuLoraOp(NamedTuple):
    """One op: `num_tokens` rows, cut among `num_workers`, which is how many the op gets: `OpCut.num_shares`.
    `in_width` is the input's width, `out_widths` are those of the modules that the adapter changes, each with
    rank `lora_rank`; `tokens_per_worker` is what `OpCut` was told of them. A result has the columns of all
    modules of the projection, `group_out_width`; None if the adapter changes all of them."""

    num_tokens: int
    in_width: int
    out_widths: tuple[int, ...]
    lora_rank: int
    num_workers: int
    tokens_per_worker: int = 1
    group_out_width: int | None = None

    @property
    def terms(self) -> tuple[float, ...]:
        """What the time grows with, in the order of `CpuLoraModel`'s fields."""
        cut = self._cut
        worker_tokens = -(-self.num_tokens // cut.num_row_runs)
        columns = (cut.share(column * cut.num_slices).modules for column in range(cut.num_columns))
        out_widths = max((self.out_widths[own.start : own.stop] for own in columns), key=self._weights)
        # Each slice reads all of x.
        weights = -(-self._weights(out_widths) // cut.num_slices)
        out_elements = -(-sum(out_widths) // cut.num_slices)
        return (
            1.0,
            float(len(out_widths)),
            float(worker_tokens * weights),
            float(weights),
            float(worker_tokens * (self.in_width + out_elements)),
            float(self.num_workers - 1),
        )

    @property
    def exchanged_elements(self) -> int:
        """Of x and of the result, one after the other on the link."""
        out_width = sum(self.out_widths) if self.group_out_width is None else self.group_out_width
        return self.num_tokens * (self.in_width + out_width)

    @property
    def has_meeting(self) -> bool:
        """Whether workers share a module, and wait for one another in the middle of it."""
        return self._cut.num_slices > 1

    @property
    def _cut(self) -> OpCut:
        return OpCut.of(
            self.num_tokens, len(self.out_widths), self.num_workers, self.tokens_per_worker, self.lora_rank
        )

    def _weights(self, out_widths: Sequence[int]) -> int:
        """Elements of A and B of modules of these widths."""
        return self.lora_rank * (self.in_width * len(out_widths) + sum(out_widths))


@dataclass(frozen=True, slots=True)
class CpuLoraModel:
    """The time of an op is a sum of costs, in milliseconds.

    Attributes:
        op_ms: of any op, however small: signals, and whatever has to look for them.
        module_ms: of each module of the worker with most work: its own products are called.
        product_ms: of each multiplication of that worker.
        weight_ms: of each weight that it reads.
        element_ms: of each element of its x and result.
        worker_ms: of each worker beyond the first.
        exchanged_ms: of each element of the op's x and result, on its way.
        meeting_ms: of an op whose modules are shared by workers, which wait for one another.
    """

    op_ms: float
    module_ms: float
    product_ms: float
    weight_ms: float
    element_ms: float
    worker_ms: float
    exchanged_ms: float
    meeting_ms: float
    quality: FitQuality

    @staticmethod
    def fit(ops: Sequence[CpuLoraOp], times_ms: Sequence[float]) -> CpuLoraModel:
        """The model through ops of several sizes, at least eight, judged by relative errors: they span two
        orders of magnitude, and a small op comes as often as a large one.

        Args:
            ops: what was measured.
            times_ms: of each op, above 0.

        Raises:
            ProfileError: the points follow no such model.
        """
        op_ms, module_ms, product_ms, weight_ms, element_ms, worker_ms, exchanged_ms, meeting_ms = fit_costs(
            [_all_terms(op) for op in ops], times_ms, relative=True
        )
        unjudged = FitQuality(1.0, 0.0, 0)
        model = CpuLoraModel(
            op_ms,
            module_ms,
            product_ms,
            weight_ms,
            element_ms,
            worker_ms,
            exchanged_ms,
            meeting_ms,
            unjudged,
        )
        quality = FitQuality.of_relative([model.predict_ms(op) for op in ops], times_ms)
        quality.require("LoRA on the CPU")
        return replace(model, quality=quality)

    def predict_ms(self, op: CpuLoraOp) -> float:
        """Milliseconds from sending the op's rows until its results are added, for weights that were in no
        cache when the step began."""
        costs = (
            self.op_ms,
            self.module_ms,
            self.product_ms,
            self.weight_ms,
            self.element_ms,
            self.worker_ms,
            self.exchanged_ms,
            self.meeting_ms,
        )
        return sum(cost_ms * term for cost_ms, term in zip(costs, _all_terms(op), strict=True))

    def over_slower_link(self, more_ms: float) -> CpuLoraModel:
        """The same workers where each element of x and of a result is on its way for `more_ms` longer."""
        return replace(self, exchanged_ms=self.exchanged_ms + more_ms)

    def tokens_per_worker(self, in_width: int, out_width: int, lora_rank: int) -> int:
        """c of the paper's ⌈L / c⌉ workers, here of one module: the fewest tokens a worker at which a further
        worker saves what it costs.

        Two workers of c tokens in place of one of 2 · c save the time of c tokens, and cost what every worker
        pays whatever its tokens: calling the products, reading the weights, and being one more to wait for.
        What any op costs, and what its rows cost on their way, is the same for one worker and for several.
        """
        _, modules, products, weights, elements, _ = CpuLoraOp(1, in_width, (out_width,), lora_rank, 1).terms
        token_ms = self.product_ms * products + self.element_ms * elements
        worker_ms = self.module_ms * modules + self.weight_ms * weights + self.worker_ms
        if token_ms * _MOST_TOKENS_PER_WORKER <= worker_ms:
            return _MOST_TOKENS_PER_WORKER
        return max(1, math.ceil(worker_ms / token_ms))


# A decision about one arrival asks for each op several times, see `cpu_ops`.
@lru_cache(maxsize=1024)
def _all_terms(op: CpuLoraOp) -> tuple[float, ...]:
    """In the order of `CpuLoraModel`'s fields."""
    return (*op.terms, float(op.exchanged_elements), float(op.has_meeting))
