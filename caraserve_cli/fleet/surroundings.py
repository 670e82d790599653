"""What is known of a replica without the weights of its base: what the user named, resolved and checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch

from caraserve_cli.adapters.adapter_share import AdapterShare
from caraserve_cli.adapters.description import OutlineAdapter
from caraserve_cli.adapters.host_store import HostStore, LoadAdapter
from caraserve_cli.adapters.largest_rank import find_largest_rank
from caraserve_cli.adapters.library import AdapterLibrary
from caraserve_cli.adapters.loader import load_adapter, outline_adapter
from caraserve_cli.adapters.packing import MAX_LORA_RANK, LoraForm, Packer, PaddedForm, UnpaddedForm
from caraserve_cli.adapters.used_groups import find_used_groups
from caraserve_cli.coldstart.break_even import BreakEven
from caraserve_cli.config import EngineConfig
from caraserve_cli.core import AdapterInfo, BaseShape, Request
from caraserve_cli.engine.limits import check_fits
from caraserve_cli.errors import AdapterError, OptionError, RowError, RowErrorCode
from caraserve_cli.fleet.cold_start import (
    check_cold_start,
    find_profile,
    make_break_even,
    wants_workers,
)
from caraserve_cli.fleet.machine import choose_device, choose_dtype, describe_device
from caraserve_cli.fleet.memory_plan import MemoryPlan, plan_memory
from caraserve_cli.fleet.options import LoraKernel, ReplicaOptions
from caraserve_cli.fleet.tensor_parallel import check_tensor_parallel
from caraserve_cli.model.resolve import ResolvedBase, resolve_base
from caraserve_cli.model.tokenizer import Tokenizer, load_tokenizer
from caraserve_cli.perf.profile import MachineProfile
from caraserve_cli.perf.step_model import StepModel
from caraserve_cli.shard import Shard


def copies_adapters(device: torch.device) -> bool:
    """Whether adapters are copied to a pool on the device; if not, they are used from host memory."""
    return device.type == "cuda"


# Library, the base's shape, the largest rank that is served -> the largest rank of its adapters, or 0.
FindLargestRank: TypeAlias = Callable[[AdapterLibrary, BaseShape, int], int]
# Library, the base's shape -> indices of the fused projections that its adapters change.
FindUsedGroups: TypeAlias = Callable[[AdapterLibrary, BaseShape], frozenset[int]]


@dataclass(frozen=True, slots=True)
class AdapterSource:
    """Which adapters there are, what makes weights of one, and what tells, without making any, the outline of
    one, and the largest rank of all of them and the modules that they change."""

    library: AdapterLibrary
    load: LoadAdapter = load_adapter
    outline: OutlineAdapter = outline_adapter
    find_largest_rank: FindLargestRank = find_largest_rank
    find_used_groups: FindUsedGroups = find_used_groups

    def of(self, share: AdapterShare) -> AdapterSource:
        """One process's parts of the adapters on disk."""
        assert self.load is load_adapter, "other weights are not cut"
        return AdapterSource(self.library, share.load, share.outline, share.find_largest_rank)

    def choose_form(self, lora_kernel: LoraKernel, shape: BaseShape) -> LoraForm:
        """The form in which a pool holds these adapters."""
        if lora_kernel == UnpaddedForm.kernel:
            return UnpaddedForm()
        return PaddedForm(max(1, self.find_largest_rank(self.library, shape, MAX_LORA_RANK)))


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Everything about a replica that is known without the base's weights; the dry run stops here.

    `step_model`: of this machine; None where nothing was measured. `copies_adapters`: as the function of that
    name says of the device.
    """

    base: ResolvedBase
    tokenizer: Tokenizer | None
    adapters: AdapterSource
    host_store: HostStore
    memory: MemoryPlan
    profile: MachineProfile | None
    break_even: BreakEven | None
    step_model: StepModel | None
    device: torch.device
    dtype: torch.dtype
    copies_adapters: bool

    @classmethod
    def prepare(
        cls, options: ReplicaOptions, adapters: AdapterSource | None = None, *, use_profile: bool = True
    ) -> Surroundings:
        """Resolve what the options name; `adapters` are there in place of those below the options' folders.
        Who measures a new profile does not want the stored one.

        Raises:
            OptionError: an option cannot be met on this machine.
            BaseModelError: the base is missing or cannot be honoured.
        """
        device = choose_device(options.device)
        check_lora_kernel(options.lora_kernel, device)
        check_cold_start(options, device)
        check_tensor_parallel(options, device)
        base = resolve_base(options.base, options.weights)
        dtype = choose_dtype(options.dtype, device, base.config.dtype)
        source = adapters or AdapterSource(AdapterLibrary.scan(options.adapter_roots))
        if options.tensor_parallel > 1:
            base = dataclasses.replace(base, config=base.config.sharded(Shard(0, options.tensor_parallel)))
            source = source.of(AdapterShare(base.config.whole_shape, base.config.shard))
        memory = plan_memory(options, base.config, dtype, device)
        shape = base.config.shape
        profile = find_profile(options, dtype, device) if use_profile else None
        break_even = make_break_even(profile, options, device)
        packer, is_copied = None, copies_adapters(device)
        if is_copied or wants_workers(options, break_even):
            form = source.choose_form(options.lora_kernel, shape)
            packer = Packer(shape, form, pinned=device.type == "cuda")
        host_store = HostStore(
            source.library, shape, dtype, memory.host_adapter_bytes, packer, source.load, source.outline
        )
        tokenizer = None if base.folder is None else load_tokenizer(base.folder)
        return cls(
            base,
            tokenizer,
            source,
            host_store,
            memory,
            profile,
            break_even,
            _make_step_model(profile, options),
            device,
            dtype,
            is_copied,
        )

    @property
    def library(self) -> AdapterLibrary:
        return self.adapters.library

    @property
    def engine_config(self) -> EngineConfig:
        return self.memory.engine

    @property
    def device_description(self) -> str:
        description, tp_size = describe_device(self.device), self.base.config.shard.tp_size
        return description if tp_size == 1 else f"{description}, tensor-parallel over {tp_size} processes"

    def describe_adapter(self, request: Request) -> AdapterInfo | None:
        """What planning needs of the adapter a request names; None for the base alone.

        Raises:
            RowError: the adapter is refused.
        """
        if request.adapter is None:
            return None
        try:
            return self.host_store.describe(request.adapter)
        except AdapterError as error:
            raise RowError(RowErrorCode.ADAPTER_REFUSED, str(error), request.id) from error

    def check(self, request: Request) -> None:
        """All that can be said of a request without answering it.

        Raises:
            RowError: it would fail.
        """
        check_fits(self.engine_config, request, self.describe_adapter(request))
        if request.adapter is not None:
            try:
                self.host_store.acquire(request.adapter)
            except AdapterError as error:
                raise RowError(RowErrorCode.ADAPTER_REFUSED, str(error), request.id) from error
            self.host_store.release(request.adapter)


def _make_step_model(profile: MachineProfile | None, options: ReplicaOptions) -> StepModel | None:
    if profile is None:
        return None
    is_padded = options.lora_kernel != UnpaddedForm.kernel
    return StepModel.of(profile, is_padded=is_padded, max_batch_tokens=options.max_batch_tokens)


def check_lora_kernel(lora_kernel: LoraKernel, device: torch.device) -> None:
    if lora_kernel != UnpaddedForm.kernel and not copies_adapters(device):
        raise OptionError(
            f"--lora-kernel: '{lora_kernel}' pads adapters in a GPU's memory, and the base runs on the CPU; "
            "leave it out, or use --device cuda"
        )
