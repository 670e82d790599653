"""The step models of many replicas side by side: a prediction for all of them is one numpy expression.

The formulas are those of `StepModel` and the models in it; replicas may have different ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from caraserve_cli.perf.batch_load import BatchLoads, FloatArray, IntArray, RankSums
from caraserve_cli.perf.lora_kernels import LoraKernelModel
from caraserve_cli.perf.step_correction import CorrectionArrays, StepCorrection, StepCorrections
from caraserve_cli.perf.step_model import StepModel


class StepModels:
    """The times of the steps of N replicas.

    Args:
        models: of each replica.
        most_requests: that are ever asked about in one batch.
    """

    def __init__(self, models: Sequence[StepModel], most_requests: int) -> None:
        def column(value: Callable[[StepModel], float]) -> FloatArray:
            return np.array([value(model) for model in models], dtype=np.float64)

        def lora_column(value: Callable[[LoraKernelModel], float]) -> FloatArray:
            return column(lambda model: value(model.lora_kernel) if model.lora_kernel else 0.0)

        # Lines between measured points, laid out for all batch sizes: one row for each distinct model.
        decodes = list(dict.fromkeys(model.decode for model in models))
        sizes = range(most_requests + 1)
        self._decode_ms = np.array([decode.step_ms(size) for decode in decodes for size in sizes])
        row_of = {decode: len(sizes) * index for index, decode in enumerate(decodes)}
        self._decode_row = np.array([row_of[model.decode] for model in models], dtype=np.int64)
        self._kv_token_ms = column(lambda model: model.kv_token_ms)
        self._has_kv_cost = bool(self._kv_token_ms.any())

        self._alpha_ms = column(lambda model: model.prefill.alpha_ms)
        self._beta_ms = column(lambda model: model.prefill.beta_ms)
        self._gamma_ms = column(lambda model: model.prefill.gamma_ms)
        self._knee_tokens = column(lambda model: model.prefill.knee_tokens)
        self._max_batch_tokens = column(lambda model: model.max_batch_tokens)

        # One of the two is 0 for each replica, so that none has to be told from another.
        self._padded_alpha_ms = lora_column(lambda kernel: kernel.alpha_ms * kernel.is_padded)
        self._unpadded_alpha_ms = lora_column(lambda kernel: kernel.alpha_ms * (not kernel.is_padded))
        self._lora_beta_ms = lora_column(lambda kernel: kernel.beta_ms)
        self._has_padded, self._has_unpadded = self._padded_alpha_ms.any(), self._unpadded_alpha_ms.any()

        # Looked at once a replica has told of its steps.
        self._is_corrected = False
        all_corrections = [model.corrections for model in models]
        self._of_decode = _make_arrays([each.decode for each in all_corrections])
        self._of_prompts = _make_arrays([each.prompts for each in all_corrections])
        for replica, corrections in enumerate(all_corrections):
            self.correct(replica, corrections)

    def correct(self, replica: int, corrections: StepCorrections) -> None:
        """What the steps of a replica say of its model, in place of what they said before."""
        for of_kind, correction in zip((self._of_decode, self._of_prompts), corrections, strict=True):
            for array, value in zip(of_kind, correction, strict=True):
                array[replica] = value
        self._is_corrected = self._is_corrected or corrections != StepCorrections()

    def decode_ms(self, batches: BatchLoads) -> FloatArray:
        """`StepModel.decode_ms` of each replica's batch, of at most `most_requests` requests, shape [N]."""
        step_ms = self._decode_ms.take(self._decode_row + batches.num_requests)
        lora_ms = self._lora_ms(batches.ranks)
        step_ms += lora_ms
        if self._has_kv_cost:
            step_ms += self._kv_token_ms * batches.kv_tokens
        if not self._is_corrected:
            return step_ms
        of = self._of_decode
        corrected_ms = of.times * step_ms + of.lora_times * lora_ms + of.kv_token_ms * batches.kv_tokens
        corrected_ms += of.lora_rank_ms * batches.ranks.lora_rank_sum + of.constant_ms
        return np.where(batches.num_requests > 0, np.maximum(corrected_ms, 0.0), step_ms)

    def prompts_ms(
        self, prompt_tokens: FloatArray, ranks: RankSums[FloatArray], num_decoding: IntArray
    ) -> FloatArray:
        """`StepModel.prompts_ms` of each replica's queue; all of shape [N]."""
        # Mostly no replica has more than one step to do.
        full = None
        rest = prompt_tokens
        if (prompt_tokens >= self._max_batch_tokens).any():
            full = np.floor(prompt_tokens / self._max_batch_tokens)
            rest = prompt_tokens - full * self._max_batch_tokens
        prompts_ms = self._prefill_ms(rest + num_decoding)
        prompts_ms *= rest > 0
        if full is not None:
            prompts_ms += full * self._prefill_ms(self._max_batch_tokens + num_decoding)
        lora_ms = self._lora_ms(ranks)
        prompts_ms += lora_ms
        if not self._is_corrected:
            return prompts_ms
        of = self._of_prompts
        first_ms = of.times * prompts_ms + of.lora_times * lora_ms + of.lora_rank_ms * ranks.lora_rank_sum
        first_ms += of.constant_ms
        num_more = (rest > 0) - 1.0 if full is None else full + (rest > 0) - 1.0
        corrected_ms = np.maximum(np.maximum(first_ms, 0.0) + num_more * of.constant_ms, 0.0)
        return np.where(prompt_tokens > 0, corrected_ms, prompts_ms)

    def interruption_ms(self, prompt_tokens: int, num_requests: IntArray) -> FloatArray:
        """`StepModel.interruption_ms` of each replica, of batches of at most `most_requests` requests, shape
        [N]."""
        interruption_ms = self._prefill_ms(num_requests.astype(np.float64) + (prompt_tokens - 1))
        decode_ms = self._decode_ms.take(self._decode_row + num_requests)
        if self._is_corrected:
            prompts, decode = self._of_prompts, self._of_decode
            interruption_ms = np.maximum(prompts.times * interruption_ms + prompts.constant_ms, 0.0)
            decode_ms = np.maximum(decode.times * decode_ms + decode.constant_ms, 0.0)
        interruption_ms -= decode_ms
        return np.maximum(interruption_ms, 0.0, out=interruption_ms)

    def _prefill_ms(self, num_tokens: FloatArray) -> FloatArray:
        """`PrefillModel.step_ms` of each replica."""
        beyond_tokens = np.maximum(num_tokens - self._knee_tokens, 0.0)
        beyond_tokens *= self._gamma_ms
        beyond_tokens += self._beta_ms * num_tokens
        beyond_tokens += self._alpha_ms
        return beyond_tokens

    def _lora_ms(self, ranks: RankSums[FloatArray]) -> FloatArray:
        """`LoraKernelModel.sums_ms` of each replica."""
        lora_ms = self._lora_beta_ms * (ranks.num_adapters > 0)
        if self._has_unpadded:
            lora_ms += self._unpadded_alpha_ms * ranks.lora_rank_sum
        if self._has_padded:
            lora_ms += self._padded_alpha_ms * ranks.num_adapters * ranks.lora_rank_max
        return lora_ms


def _make_arrays(corrections: Sequence[StepCorrection]) -> CorrectionArrays:
    """Room for one of each replica, filled."""
    return CorrectionArrays(*np.array(corrections, dtype=np.float64).reshape(-1, 5).T.copy())
