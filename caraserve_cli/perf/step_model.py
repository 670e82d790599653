"""How long the steps of one replica take with LoRA (paper, sections 2 and 3: DecPerf and PrePerf).

The paper's β holds the base's time, for it fits one batch size at a time. Here the base has its own measured
models, by the batch's size and the prompts' tokens, and the LoRA kernel adds its own line to them. What the
steps of a run take corrects them (`step_predictor`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from caraserve_cli.perf.batch_load import BatchLoad, RankSums
from caraserve_cli.perf.decode import DecodeModel
from caraserve_cli.perf.lora_kernels import LoraKernelModel
from caraserve_cli.perf.prefill import PrefillModel
from caraserve_cli.perf.profile import MachineProfile
from caraserve_cli.perf.step_correction import NO_CORRECTION, StepCorrections
from caraserve_cli.perf.step_load import StepLoad


@dataclass(frozen=True, slots=True, kw_only=True)
class StepModel:
    """The times of a replica's steps; microseconds for one prediction.

    Attributes:
        prefill: steps with prompts, of the base alone.
        decode: steps without, of the base alone.
        lora_kernel: what adapters add to either; None where it was not measured, and they then add nothing.
        max_batch_tokens: the most tokens in one step.
        kv_token_ms: what each token in the cache adds to a decoding step, the first as the last: `decode` is
            without them. 0 where it was not measured, and `decode` then has short contexts in it.
        corrections: what steps measured in a run say of all this.
    """

    prefill: PrefillModel
    decode: DecodeModel
    lora_kernel: LoraKernelModel | None
    max_batch_tokens: int
    kv_token_ms: float = 0.0
    corrections: StepCorrections = StepCorrections()  # noqa: RUF009 - immutable

    @staticmethod
    def of(
        profile: MachineProfile, *, is_padded: bool, max_batch_tokens: int, kv_token_ms: float | None = None
    ) -> StepModel:
        """The model of a machine.

        Args:
            profile: of the machine.
            is_padded: which LoRA kernel runs there.
            max_batch_tokens: as in `StepModel`.
            kv_token_ms: as in `StepModel`; None for what was measured there, or 0 where it was not.
        """
        if kv_token_ms is None:
            kv_token_ms = profile.kv_cost.token_ms if profile.kv_cost else 0.0
        return StepModel(
            prefill=profile.prefill,
            decode=profile.decode,
            lora_kernel=profile.padded_kernel if is_padded else profile.unpadded_kernel,
            max_batch_tokens=max_batch_tokens,
            kv_token_ms=kv_token_ms,
        )

    def corrected(self, corrections: StepCorrections) -> StepModel:
        """The same models, corrected so and no longer as before."""
        return replace(self, corrections=corrections)

    def decode_ms(self, batch: BatchLoad) -> float:
        """DecPerf: milliseconds of a step that decodes for `batch`; 0 for an empty one."""
        lora_ms = self._lora_ms(batch.ranks)
        step_ms = self.decode.step_ms(batch.num_requests) + self.kv_token_ms * batch.kv_tokens + lora_ms
        correction = self.corrections.decode
        if correction is NO_CORRECTION or not batch.num_requests:
            return step_ms
        return correction.apply(step_ms, lora_ms, batch.kv_tokens, batch.ranks.lora_rank_sum)

    def step_ms(self, load: StepLoad) -> float:
        """Milliseconds of one step as it was planned; what CPU workers compute in it is not told apart.

        Sequences that decode beside prompts read their contexts as they do without, and adapters of prompts
        add the LoRA kernel's line: a prompt's tokens share the weights that it reads.
        """
        if not load.prompt_tokens:
            return self.decode_ms(load.decoding)
        lora_ms = self._lora_ms(load.ranks)
        step_ms = self.prefill.step_ms(load.prompt_tokens + load.num_decoding)
        step_ms += self.kv_token_ms * load.kv_tokens + lora_ms
        correction = self.corrections.prompts
        if correction is NO_CORRECTION:
            return step_ms
        return correction.apply(step_ms, lora_ms, load.kv_tokens, load.ranks.lora_rank_sum)

    def prompts_ms(self, prompt_tokens: float, ranks: RankSums[int], num_decoding: int) -> float:
        """PrePerf: milliseconds of all steps that compute the prompts of a queue; 0 for none.

        The LoRA kernel's line counts once for the whole queue, as in the paper: a prompt meets its own
        adapter in one step or a few, and those of other prompts in none.

        Args:
            prompt_tokens: of the queue, to be computed.
            ranks: of the adapters of these prompts.
            num_decoding: running requests that get a token in each of these steps.
        """
        full, rest = divmod(prompt_tokens, self.max_batch_tokens)
        full_ms = full * self.prefill.step_ms(self.max_batch_tokens + num_decoding)
        rest_ms = self.prefill.step_ms(rest + num_decoding) if rest else 0.0
        lora_ms = self._lora_ms(ranks)
        prompts_ms = full_ms + rest_ms + lora_ms
        correction = self.corrections.prompts
        if correction is NO_CORRECTION or not prompt_tokens:
            return prompts_ms
        num_more = full + (rest > 0) - 1
        prompts_ms = correction.apply(prompts_ms, lora_ms, 0.0, ranks.lora_rank_sum)
        return max(0.0, prompts_ms + num_more * correction.constant_ms)

    def interruption_ms(self, prompt_tokens: int, num_requests: int) -> float:
        """How much longer a step with a prompt takes than one that only decodes, for a batch that has the
        prompt's request among its `num_requests`; a prompt of several steps is taken as if in one."""
        decode, prompts = self.corrections
        step_ms = prompts.apply(self.prefill.step_ms(prompt_tokens + num_requests - 1), 0.0, 0.0, 0)
        return max(0.0, step_ms - decode.apply(self.decode.step_ms(num_requests), 0.0, 0.0, 0))

    def _lora_ms(self, ranks: RankSums[int]) -> float:
        return self.lora_kernel.sums_ms(ranks) if self.lora_kernel else 0.0
