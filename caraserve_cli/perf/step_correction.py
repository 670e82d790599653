"""What measured steps of a run say of the models that predict them: a sum of terms for each kind of step.

Data and one formula, for one replica and for many side by side.
"""

from __future__ import annotations

from typing import NamedTuple

from caraserve_cli.perf.batch_load import FloatArray


class StepCorrection(NamedTuple):
    """Of one kind of steps. The models' time of a step becomes

    times · (all of it) + lora_times · (LoRA kernel's part) + kv_token_ms · (tokens in the cache)
    + lora_rank_ms · (sum of ranks) + constant_ms, and at least 0.

    No part of a time shrinks as its load grows: times, and what comes of the LoRA kernel and of contexts
    together with them, are at least 0.
    """

    times: float = 1.0
    lora_times: float = 0.0
    kv_token_ms: float = 0.0
    lora_rank_ms: float = 0.0
    constant_ms: float = 0.0

    def apply(self, step_ms: float, lora_ms: float, kv_tokens: float, lora_rank_sum: float) -> float:
        """The time of one step, corrected; `lora_ms` is a part of `step_ms`."""
        return max(
            0.0,
            self.times * step_ms
            + self.lora_times * lora_ms
            + self.kv_token_ms * kv_tokens
            + self.lora_rank_ms * lora_rank_sum
            + self.constant_ms,
        )


NO_CORRECTION = StepCorrection()


class StepCorrections(NamedTuple):
    """Of steps that only decode, and of those that compute prompts."""

    decode: StepCorrection = NO_CORRECTION
    prompts: StepCorrection = NO_CORRECTION


class CorrectionArrays(NamedTuple):
    """The corrections of N replicas: each attribute has shape [N] and means what it does there."""

    times: FloatArray
    lora_times: FloatArray
    kv_token_ms: FloatArray
    lora_rank_ms: FloatArray
    constant_ms: FloatArray
