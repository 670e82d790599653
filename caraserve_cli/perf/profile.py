"""Everything measured of one machine with one base: the models, and what they were measured on.

Pure data with predictions; knows neither where it is kept nor how it was measured.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from caraserve_cli.core import BaseShape
from caraserve_cli.perf.cpu_lora import CpuLoraModel
from caraserve_cli.perf.decode import DecodeModel
from caraserve_cli.perf.decode_lora import DecodeLora
from caraserve_cli.perf.kv_cost import KvCost
from caraserve_cli.perf.link import LinkModel
from caraserve_cli.perf.lora_kernels import LoraKernelModel
from caraserve_cli.perf.mixed import MixedModel
from caraserve_cli.perf.prefill import PrefillModel

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredOn:
    """Where and when a profile was measured.

    Attributes:
        device: in words, as in reports.
        num_cores: of the host.
        torch_version: the library's.
        measured_at: date and time, ISO 8601, UTC.
        commit: of the program; None where nothing says it.
        emulated_link_gbps: to which the link was slowed down for an experiment; None for its own bandwidth.
    """

    device: str
    num_cores: int
    torch_version: str
    measured_at: str
    commit: str | None
    emulated_link_gbps: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineProfile:
    """The models of one machine, base and dtype.

    Attributes:
        base: as the user named it.
        dtype: of weights, activations and adapters.
        shape: of the base.
        link: pinned host memory to device; None where the base runs on the CPU, and nothing is copied.
        exchange: rows to CPU workers' memory and results back without any worker, by the bytes of both; None
            like `link`. It says what a slower link would change of `cpu_lora`, which has it in itself.
        prefill: steps with prompts.
        decode: steps without.
        cpu_lora: ops of CPU workers, from sending their rows until their results are added; None where they
            were not measured, and no worker then assists.
        tokens_per_worker: c of ⌈tokens / c⌉ workers.
        padded_kernel: BGMV; None without a GPU.
        unpadded_kernel: MBGMV; None without a GPU, or where the measured times follow no line. Both are of
            whole steps with adapters on q, k, v and o.
        kv_cost: what contexts add to decoding steps; `decode` is then without them. None where it was not
            measured, and `decode` then has that of short contexts in it.
        decode_lora: what adapters add to decoding steps as a replica computes them; None where it was not
            measured, and the kernels' lines then say it.
        mixed: steps with prompts beside requests that decode; None where they were not measured, and they
            are then taken as steps of as many tokens of prompts.
        between_steps_ms: what the host does between the end of a step and the planning of the next; 0 where
            steps are planned ahead, and it passes beneath them.
    """

    measured_on: MeasuredOn
    base: str
    dtype: str
    shape: BaseShape
    link: LinkModel | None
    exchange: LinkModel | None
    prefill: PrefillModel
    decode: DecodeModel
    cpu_lora: CpuLoraModel | None
    tokens_per_worker: int
    padded_kernel: LoraKernelModel | None = None
    unpadded_kernel: LoraKernelModel | None = None
    kv_cost: KvCost | None = None
    decode_lora: DecodeLora | None = None
    mixed: MixedModel | None = None
    between_steps_ms: float = 0.0

    @property
    def dtype_bytes(self) -> int:
        """Of one element."""
        return DTYPE_BYTES[self.dtype]

    def emulated(self, link_gbps: float) -> MachineProfile:
        """The same machine with its link slowed down to `link_gbps` GB/s, for adapters and rows alike."""
        exchange = self.exchange and self.exchange.emulated(link_gbps)
        cpu_lora = self.cpu_lora
        if cpu_lora is not None and self.exchange is not None and exchange is not None:
            more_ms = self.dtype_bytes * (1 / exchange.bytes_per_ms - 1 / self.exchange.bytes_per_ms)
            cpu_lora = cpu_lora.over_slower_link(more_ms)
        return replace(
            self,
            measured_on=replace(self.measured_on, emulated_link_gbps=link_gbps),
            link=self.link and self.link.emulated(link_gbps),
            exchange=exchange,
            cpu_lora=cpu_lora,
        )
