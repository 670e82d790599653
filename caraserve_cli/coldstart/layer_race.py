"""The race of a prefill with the copies of the adapter that it uses, layer by layer. Arithmetic and nothing
else.

Layers 0 … k - 1 are computed by CPU workers, one after the other, `cpu_layer_ms` each; then layers k … on the
GPU, `gpu_layer_ms` each, every one as soon as it has been copied. The link begins with layer k when what is
under way before has gone over it, and carries the workers' results too, `result_layer_ms` for each of their
layers. Layers 0 … k - 1 are copied last. Copies are taken to arrive layer by layer, though some layers may
share a copy.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LayerRace:
    """The times of one arrival's race, in milliseconds.

    Attributes:
        num_layers: of the base.
        gpu_layer_ms: of a layer in the step that the arrival joins, its adapter being there.
        cpu_layer_ms: of the same with the adapter's part computed by CPU workers; not less than
            `gpu_layer_ms`.
        copy_layer_ms: of a layer's copy.
        result_layer_ms: what the results of a layer of CPU workers keep the link; not more than
            `cpu_layer_ms`.
        copies_begin_ms: from when the prefill could begin until the first byte arrives; below 0 where copies
            begin before that.
    """

    num_layers: int
    gpu_layer_ms: float
    cpu_layer_ms: float
    copy_layer_ms: float
    result_layer_ms: float
    copies_begin_ms: float

    def never_waits(self, cpu_layers: int) -> bool:
        """Whether no layer of the prefill waits for the link.

        Both what layers wait for and when they are reached grow evenly with the layer: it is enough to look
        at the first and the last of them.
        """
        gpu_layers = self.num_layers - cpu_layers
        if not gpu_layers or not self.copy_layer_ms:
            return True
        before_ms = self.copies_begin_ms + cpu_layers * self.result_layer_ms
        reached_ms = cpu_layers * self.cpu_layer_ms
        last_reached_ms = reached_ms + (gpu_layers - 1) * self.gpu_layer_ms
        return (
            before_ms + self.copy_layer_ms <= reached_ms
            and before_ms + gpu_layers * self.copy_layer_ms <= last_reached_ms
        )

    def fewest_cpu_layers(self) -> int:
        """The smallest k with which the link is never waited for; at most all layers.

        With each further layer the CPU computes, the GPU comes later and less has to be copied, so that what
        does not wait with k does not wait with k + 1.
        """
        return bisect_left(range(self.num_layers), True, key=self.never_waits)

    def prefill_ms(self, cpu_layers: int) -> float:
        """From the begin of the prefill to the end of its last layer."""
        gpu_layers = self.num_layers - cpu_layers
        computing_ms = self.computing_ms(cpu_layers)
        if not gpu_layers or not self.copy_layer_ms:
            return computing_ms
        before_ms = self.copies_begin_ms + cpu_layers * self.result_layer_ms
        first_late_ms = before_ms + self.copy_layer_ms + gpu_layers * self.gpu_layer_ms
        last_late_ms = before_ms + gpu_layers * self.copy_layer_ms + self.gpu_layer_ms
        return max(computing_ms, first_late_ms, last_late_ms)

    def stall_ms(self, cpu_layers: int) -> float:
        """How much later the prefill ends than with the adapter on the device."""
        return self.prefill_ms(cpu_layers) - self.num_layers * self.gpu_layer_ms

    def complete_ms(self, cpu_layers: int) -> float:
        """From when the prefill could begin until all layers are on the device; may be below 0."""
        if not self.copy_layer_ms:
            return 0.0
        copying_ms = self.num_layers * self.copy_layer_ms + cpu_layers * self.result_layer_ms
        return self.copies_begin_ms + copying_ms

    def hold_ms(self, cpu_layers: int) -> float:
        """How long to wait with a prefill, so that it then never waits for the link; may be below 0."""
        gpu_layers = self.num_layers - cpu_layers
        if not gpu_layers or not self.copy_layer_ms:
            return 0.0
        before_ms = self.copies_begin_ms + cpu_layers * (self.result_layer_ms - self.cpu_layer_ms)
        first_ms = before_ms + self.copy_layer_ms
        last_ms = before_ms + gpu_layers * self.copy_layer_ms - (gpu_layers - 1) * self.gpu_layer_ms
        return max(first_ms, last_ms)

    def computing_ms(self, cpu_layers: int) -> float:
        """What the prefill takes where the link is not waited for."""
        return cpu_layers * self.cpu_layer_ms + (self.num_layers - cpu_layers) * self.gpu_layer_ms
