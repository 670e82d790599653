"""One replica in this process: the engine with everything it needs, loaded from what the user named."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import torch

from caraserve_cli.adapters.description import OutlineAdapter
from caraserve_cli.adapters.host_store import HostStore, LoadAdapter
from caraserve_cli.adapters.largest_rank import find_largest_rank
from caraserve_cli.adapters.library import AdapterLibrary
from caraserve_cli.adapters.loader import load_adapter, outline_adapter
from caraserve_cli.adapters.packing import MAX_LORA_RANK, LoraForm, Packer, PaddedForm, UnpaddedForm
from caraserve_cli.adapters.used_groups import find_used_groups
from caraserve_cli.coldstart.break_even import BreakEven
from caraserve_cli.coldstart.policy import Auto
from caraserve_cli.config import EngineConfig
from caraserve_cli.core import AdapterInfo, BaseShape, Failure, Request
from caraserve_cli.engine.engine import Engine, Runner, TextStream
from caraserve_cli.engine.gpu_runner import GpuRunner
from caraserve_cli.engine.limits import check_fits
from caraserve_cli.engine.model_runner import ModelRunner
from caraserve_cli.errors import AdapterError, OptionError, RowError, RowErrorCode
from caraserve_cli.events import EventSink, StepRecord
from caraserve_cli.fleet.cold_start import (
    DeviceLink,
    check_cold_start,
    choose_policy,
    find_break_even,
    start_assistant,
    wants_workers,
)
from caraserve_cli.fleet.machine import choose_device, choose_dtype, describe_device
from caraserve_cli.fleet.memory_plan import MemoryPlan, plan_memory
from caraserve_cli.fleet.options import LoraKernel, ReplicaOptions
from caraserve_cli.fleet.replica import Outcome
from caraserve_cli.model.checkpoint import load_decoder, random_decoder
from caraserve_cli.model.decoder import Decoder
from caraserve_cli.model.detokenizer import Detokenizer
from caraserve_cli.model.resolve import ResolvedBase, resolve_base
from caraserve_cli.model.rope import Rope
from caraserve_cli.model.tokenizer import Tokenizer, load_tokenizer


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

    def choose_form(self, lora_kernel: LoraKernel, shape: BaseShape) -> LoraForm:
        """The form in which a pool holds these adapters."""
        if lora_kernel == UnpaddedForm.kernel:
            return UnpaddedForm()
        return PaddedForm(max(1, self.find_largest_rank(self.library, shape, MAX_LORA_RANK)))


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Everything about a replica that is known without the base's weights; the dry run stops here."""

    base: ResolvedBase
    tokenizer: Tokenizer | None
    adapters: AdapterSource
    host_store: HostStore
    memory: MemoryPlan
    break_even: BreakEven | None
    device: torch.device
    dtype: torch.dtype

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
        _check_lora_kernel(options.lora_kernel, device)
        check_cold_start(options, device)
        base = resolve_base(options.base, options.weights)
        dtype = choose_dtype(options.dtype, device, base.config.dtype)
        source = adapters or AdapterSource(AdapterLibrary.scan(options.adapter_roots))
        memory = plan_memory(options, base.config, dtype, device)
        shape = base.config.shape
        break_even = find_break_even(options, dtype, device) if use_profile else None
        packer = None
        if copies_adapters(device) or wants_workers(options, break_even):
            form = source.choose_form(options.lora_kernel, shape)
            packer = Packer(shape, form, pinned=device.type == "cuda")
        host_store = HostStore(
            source.library, shape, dtype, memory.host_adapter_bytes, packer, source.load, source.outline
        )
        tokenizer = None if base.folder is None else load_tokenizer(base.folder)
        return cls(base, tokenizer, source, host_store, memory, break_even, device, dtype)

    @property
    def library(self) -> AdapterLibrary:
        return self.adapters.library

    @property
    def engine_config(self) -> EngineConfig:
        return self.memory.engine

    @property
    def device_description(self) -> str:
        return describe_device(self.device)

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


def _check_lora_kernel(lora_kernel: LoraKernel, device: torch.device) -> None:
    if lora_kernel != UnpaddedForm.kernel and not copies_adapters(device):
        raise OptionError(
            f"--lora-kernel: '{lora_kernel}' pads adapters in a GPU's memory, and the base runs on the CPU; "
            "leave it out, or use --device cuda"
        )


class NoEvents:
    """An event sink for a run whose steps nobody looks at."""

    def on_step(self, record: StepRecord) -> None:
        """Forget the step."""


class LocalReplica:
    """An engine in this process, stepped by `poll`."""

    def __init__(
        self,
        surroundings: Surroundings,
        options: ReplicaOptions,
        clock_ms: Callable[[], float],
        events: EventSink,
    ) -> None:
        packer = surroundings.host_store.packer
        if packer is not None and packer.form.kernel != options.lora_kernel:
            raise ValueError(f"the host store packs for {packer.form.kernel}, not for {options.lora_kernel}")
        self._surroundings = surroundings
        self._link = DeviceLink(surroundings.device)
        self._assistant = None
        if wants_workers(options, surroundings.break_even):
            self._assistant = start_assistant(
                options,
                surroundings.host_store,
                surroundings.base.config.shape,
                surroundings.dtype,
                surroundings.device,
                surroundings.break_even,
            )
        base, dtype, device = surroundings.base, surroundings.dtype, surroundings.device
        if base.folder is None or options.weights == "random":
            decoder = random_decoder(base.config, dtype, device, options.seed)
        else:
            decoder = load_decoder(base.folder, base.config, dtype, device)
        config = surroundings.engine_config
        self._runner = self._make_runner(decoder, config)
        rope: Rope = decoder.rope
        self._engine = Engine(
            config,
            self._runner,
            frozenset(base.config.eos_token_ids),
            rope.variant,
            None if surroundings.tokenizer is None else self._open_text,
            clock_ms,
            events,
            base.config.shape.num_layers,
        )
        self._cold_start: str = options.cold_start
        self.emulate_link(options.emulate_link_gbps)
        self._refused: list[Outcome] = []

    @property
    def num_unfinished(self) -> int:
        return self._engine.num_unfinished + len(self._refused)

    @property
    def num_running(self) -> int:
        scheduler = self._engine.scheduler
        return len(scheduler.running) + len(scheduler.ending)

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests; one that can never be answered comes back as a failure from `poll`."""
        for request in requests:
            try:
                self._engine.add_request(request, self._surroundings.describe_adapter(request))
            except RowError as error:
                self._refused.append(Failure(request, error.code, error.message))

    def poll(self) -> list[Outcome]:
        """Run one engine step."""
        outcomes, self._refused = self._refused, []
        if self._engine.has_work:
            outcomes += self._engine.step()
        return outcomes

    def evict_adapters(self, adapters: Iterable[str]) -> None:
        """Take those of these adapters that are on the device off it: their next use is a cold start.

        Raises:
            ValueError: one of them is in use.
        """
        residency = self._engine.scheduler.residency
        for name in filter(residency.is_resident, adapters):
            adapter_slot = residency.acquire(self._surroundings.host_store.describe(name)).adapter_slot
            residency.release(name)
            residency.discard(name)
            self._runner.adapters.evict(adapter_slot)

    def use_cold_start(self, name: str) -> None:
        """Bring adapters that are cold from now on to the device as `--cold-start` says. Nothing must be
        under way.

        Raises:
            OptionError: there is no such strategy.
        """
        self._cold_start = name
        self._choose_policy()

    def emulate_link(self, gbps: float | None) -> None:
        """Be at the end of a link of `gbps` gigabytes a second each way from now on; None for the machine's
        own. Nothing must be on its way.

        Raises:
            OptionError: the machine's own link is not faster.
        """
        self._link.emulate(gbps, self._assistant)
        self._link_gbps = gbps
        self._choose_policy()

    def close(self) -> None:
        """End its CPU workers; it answers nothing any more."""
        if self._assistant is not None:
            self._assistant.close()

    def check_integrity(self) -> None:
        """For tests, after every step.

        Raises:
            AssertionError: the engine's books do not add up.
        """
        self._engine.scheduler.check_integrity()
        self._surroundings.host_store.check_integrity()

    def _choose_policy(self) -> None:
        break_even = self._surroundings.break_even
        if break_even is not None and self._link_gbps is not None:
            break_even = break_even.emulated(self._link_gbps)
        policy = choose_policy(self._cold_start, break_even)
        self._engine.scheduler.cold_starts.policy = policy
        if isinstance(self._runner, GpuRunner):
            # Steps over another link, or beside others, are other graphs.
            self._runner.warm_up(self._used_groups, beside=policy.name == Auto.name)

    def _make_runner(self, decoder: Decoder, config: EngineConfig) -> Runner:
        host_store = self._surroundings.host_store
        if not copies_adapters(decoder.device):
            return ModelRunner(
                decoder, host_store, config.num_kv_blocks, config.kv_block_tokens, self._assistant
            )
        return GpuRunner(decoder, host_store, config, self._link.lane, self._assistant)

    @cached_property
    def _used_groups(self) -> frozenset[int]:
        """Fused groups that some adapter changes."""
        adapters = self._surroundings.adapters
        return adapters.find_used_groups(adapters.library, self._surroundings.base.config.shape)

    def _open_text(self, request: Request) -> TextStream:
        tokenizer = self._surroundings.tokenizer
        assert tokenizer is not None
        return Detokenizer(tokenizer, request.prompt_token_ids, request.sampling.stop)
