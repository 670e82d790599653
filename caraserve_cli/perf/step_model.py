"""How long the steps of one replica take with LoRA (paper, sections 2 and 3: DecPerf and PrePerf).

The paper's β holds the base's time, for it fits one batch size at a time. Here the base has its own measured
models, by the batch's size and the prompts' tokens, and the LoRA kernel adds its own line to them.
"""

from __future__ import annotations

from dataclasses import dataclass

from caraserve_cli.perf.batch_load import BatchLoad, RankSums
from caraserve_cli.perf.decode import DecodeModel
from caraserve_cli.perf.lora_kernels import LoraKernelModel
from caraserve_cli.perf.prefill import PrefillModel
from caraserve_cli.perf.profile import MachineProfile
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
    """

    prefill: PrefillModel
    decode: DecodeModel
    lora_kernel: LoraKernelModel | None
    max_batch_tokens: int
    kv_token_ms: float = 0.0

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

    def decode_ms(self, batch: BatchLoad) -> float:
        """DecPerf: milliseconds of a step that decodes for `batch`; 0 for an empty one."""
        base_ms = self.decode.step_ms(batch.num_requests)
        return base_ms + self.kv_token_ms * batch.kv_tokens + self._lora_ms(batch.ranks)

    def step_ms(self, load: StepLoad) -> float:
        """Milliseconds of one step as it was planned; what CPU workers compute in it is not told apart.

        Sequences that decode beside prompts read their contexts as they do without, and adapters of prompts
        add the LoRA kernel's line: a prompt's tokens share the weights that it reads.
        """
        if not load.prompt_tokens:
            return self.decode_ms(load.decoding)
        base_ms = self.prefill.step_ms(load.prompt_tokens + load.num_decoding)
        return base_ms + self.kv_token_ms * load.kv_tokens + self._lora_ms(load.ranks)

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
        return full_ms + rest_ms + self._lora_ms(ranks)

    def _lora_ms(self, ranks: RankSums[int]) -> float:
        return self.lora_kernel.sums_ms(ranks) if self.lora_kernel else 0.0
