"""One step as the GPU's runner lays it out, for itself and for those that follow it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from caraserve_cli.engine.step_batch import StepBatch


@dataclass(frozen=True, slots=True, eq=False)
class GpuBatch:
    """A ragged batch.

    Attributes:
        step: its chunks.
        rope_variants: [tokens], which rotary frequencies each has; None where all have the base's.
        num_fed: tokens chosen after this step that the next one takes from the GPU; 0 where that one knows
            them.
    """

    step: StepBatch
    rope_variants: NDArray[np.int64] | None
    num_fed: int

    def for_followers(self) -> GpuBatch:
        """The same without sequences: who follows chooses no tokens."""
        return GpuBatch(self.step.for_followers(), self.rope_variants, self.num_fed)
