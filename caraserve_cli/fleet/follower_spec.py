"""What a process needs to know to hold a part of a base that another one leads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from caraserve_cli.adapters.adapter_share import AdapterShare
from caraserve_cli.adapters.host_store import HostStore
from caraserve_cli.adapters.library import AdapterLibrary
from caraserve_cli.adapters.packing import LoraForm, Packer
from caraserve_cli.config import EngineConfig
from caraserve_cli.engine.gpu_runner import GpuRunner
from caraserve_cli.engine.model_runner import ModelRunner
from caraserve_cli.engine.orders import Follower
from caraserve_cli.errors import LostProcessError
from caraserve_cli.fleet.machine import free_device_bytes
from caraserve_cli.model.checkpoint import load_decoder, random_decoder
from caraserve_cli.model.collective import Collective
from caraserve_cli.model.decoder_config import DecoderConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowerSpec:
    """One process's part of everything; sizes are those that the first process has planned for itself.

    Attributes:
        config: of the base, cut for this process.
        folder: of the base's checkpoint; None for random weights.
        seed: of random weights.
        library: of adapters, as the first process has found them.
        form: in which adapters are packed; None if they are used from host memory.
        num_threads: of torch.
        needed_bytes: what the device must have free.
        meeting_place: see `ProcessGroup`.
    """

    config: DecoderConfig
    folder: Path | None
    seed: int
    dtype: torch.dtype
    device: torch.device
    engine: EngineConfig
    library: AdapterLibrary
    form: LoraForm | None
    copies_adapters: bool
    host_adapter_bytes: int
    num_threads: int
    needed_bytes: int
    meeting_place: Path

    def check_device(self) -> None:
        """Raises LostProcessError if the device has not what the first process has planned for every one."""
        if self.device.type != "cuda":
            return  # the host's memory was shared out among all
        free_bytes = free_device_bytes(self.device)
        if free_bytes < self.needed_bytes:
            raise LostProcessError(
                f"--gpu-memory: GPU {self.device.index} has {free_bytes / 1e9:.4g} GB free, and each GPU of "
                f"--tensor-parallel is to give {self.needed_bytes / 1e9:.4g} GB; ask for less, or free it"
            )

    def make_host_store(self) -> HostStore:
        """This process's parts of the adapters."""
        share = AdapterShare(self.config.whole_shape, self.config.shard)
        packer = None
        if self.form is not None:
            packer = Packer(self.config.shape, self.form, pinned=self.device.type == "cuda")
        return HostStore(
            self.library,
            self.config.shape,
            self.dtype,
            self.host_adapter_bytes,
            packer,
            share.load,
            share.outline,
        )

    def make_follower(self, collective: Collective) -> Follower:
        """Load this process's part of the base, and what it computes with.

        Raises:
            BaseModelError: as `load_decoder`.
        """
        if self.folder is None:
            decoder = random_decoder(self.config, self.dtype, self.device, self.seed, collective)
        else:
            decoder = load_decoder(self.folder, self.config, self.dtype, self.device, collective)
        host_store, engine = self.make_host_store(), self.engine
        if self.copies_adapters:
            return Follower(GpuRunner(decoder, host_store, engine), host_store)
        runner = ModelRunner(decoder, host_store, engine.num_kv_blocks, engine.kv_block_tokens)
        return Follower(runner, host_store)
