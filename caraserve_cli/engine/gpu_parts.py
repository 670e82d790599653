"""What both kinds of steps of a GPU's runner use: base, KV cache, adapter pool, the tokens chosen last."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from caraserve_cli.adapters.packed_pool import PackedPool
from caraserve_cli.adapters.packing import LoraForm
from caraserve_cli.config import EngineConfig
from caraserve_cli.engine.gpu_inputs import GpuInputs
from caraserve_cli.engine.pool_lora import Ints, LoraWay, PoolLora
from caraserve_cli.engine.step_batch import StepBatch
from caraserve_cli.errors import DeviceMemoryError
from caraserve_cli.model.attention import KvCache
from caraserve_cli.model.decoder import Decoder
from caraserve_cli.model.rope import BASE_VARIANT, Rotation
from caraserve_cli.model.triton_attention import PagedBatch


@dataclass(frozen=True, slots=True, eq=False)
class GpuParts:
    """The parts of one runner.

    Attributes:
        decoder: the base.
        config: sizes and limits.
        cache: keys and values.
        rotations: of all positions, see `Rope.table`.
        pool: adapters.
        form: theirs.
        chosen: int64 [1 + most running sequences], 0 and the tokens that the last step chose.
        num_sms: multiprocessors of the GPU.
    """

    decoder: Decoder
    config: EngineConfig
    cache: KvCache
    rotations: Tensor
    pool: PackedPool
    form: LoraForm
    chosen: Tensor
    num_sms: int

    @property
    def device(self) -> torch.device:
        return self.decoder.device

    def make_inputs(self, max_tokens: int, work_capacity: int) -> GpuInputs:
        """The inputs of steps of a kind."""
        config = self.config
        max_blocks = -(-config.max_context_tokens // config.kv_block_tokens)
        return GpuInputs(max_tokens, config.max_running, max_blocks, work_capacity, self.device)

    def make_lora(self, inputs: GpuInputs, max_tokens: int, *, decoding: bool) -> PoolLora:
        """The LoRA of steps of a kind, whose work lists are among `inputs`."""
        return PoolLora(self.pool, self.form, inputs.work, max_tokens, self.num_sms, decoding=decoding)

    def paged_batch(
        self, inputs: GpuInputs, num_tokens: int, num_sequences: int, variants: Tensor | None = None
    ) -> PagedBatch:
        """A batch at the head of the inputs' buffers; `variants` are each token's rotary frequencies, None
        for the base's."""
        fields, base = inputs.fields, self.decoder.config
        positions = fields.positions[:num_tokens]
        rotation = (
            Rotation.looked_up(self.rotations, positions)
            if variants is None
            else self.decoder.rope.rotation(positions, variants)
        )
        return PagedBatch(
            self.cache,
            base.sliding_window,
            base.rms_norm_eps,
            rotation,
            fields.slot_mapping[:num_tokens],
            inputs.block_tables[:num_sequences],
            fields.context_lens[:num_sequences],
        )

    def token_ids(self, inputs: GpuInputs, num_tokens: int) -> Tensor:
        """[tokens]: those the host knew, and those that the last step chose. Of the two numbers that are
        added up one is 0: that takes two kernels, where a choice takes four."""
        fed = self.chosen.index_select(0, inputs.fields.feed_rows[:num_tokens])
        return fed.add_(inputs.fields.token_ids[:num_tokens])

    def rope_variants(self, batch: StepBatch) -> NDArray[np.int64] | None:
        """[tokens], each one's rotary frequencies; None where all have the base's."""
        rope = self.decoder.rope
        of_chunk = [rope.variant(chunk.sequence.num_prompt_tokens) for chunk in batch.chunks]
        if all(variant == BASE_VARIANT for variant in of_chunk):
            return None
        return np.repeat(np.array(of_chunk, np.int64), np.diff(batch.first_tokens))


def on_host(rope_variants: NDArray[np.int64] | None) -> Tensor | None:
    """What `rope_variants` gave, as a tensor."""
    return None if rope_variants is None else torch.from_numpy(rope_variants)


def out_of_memory(num_tokens: int) -> DeviceMemoryError:
    """To be made where no traceback holds the step's tensors any more. What was queued of the step is over
    then: others may have what it wrote to."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return DeviceMemoryError(
        f"the GPU's memory does not hold a step of {num_tokens} tokens; "
        "lower --gpu-memory, so that more is left for steps"
    )


def write_work(work: Ints, lora: PoolLora, segments: Ints, num_tokens: int) -> tuple[LoraWay | None, int]:
    """Write a step's lists; how its LoRA is computed, and how much of the work buffer they take."""
    if not segments.shape[0]:
        return None, 0
    way = lora.choose(segments, num_tokens)
    return way, lora.write_work(work, segments, way)
