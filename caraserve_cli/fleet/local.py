"""One replica in this process: the engine with everything it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property

import torch

from caraserve_cli.adapters.packing import UnpaddedForm
from caraserve_cli.config import EngineConfig
from caraserve_cli.core import Failure, Request
from caraserve_cli.engine.engine import Engine, Runner, TextStream
from caraserve_cli.engine.gpu_runner import GpuRunner
from caraserve_cli.engine.model_runner import ModelRunner
from caraserve_cli.errors import RowError
from caraserve_cli.events import EventSink, StepRecord
from caraserve_cli.fleet.cold_start import (
    DeviceLink,
    choose_policy,
    start_assistant,
    wants_workers,
)
from caraserve_cli.fleet.options import ReplicaOptions
from caraserve_cli.fleet.replica import Outcome
from caraserve_cli.fleet.surroundings import Surroundings
from caraserve_cli.model.checkpoint import load_decoder, random_decoder
from caraserve_cli.model.decoder import Decoder
from caraserve_cli.model.detokenizer import Detokenizer
from caraserve_cli.model.rope import Rope
from caraserve_cli.perf.step_model import StepModel
from caraserve_cli.perf.step_predictor import StepPredictor


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
        try:
            self._start(options, clock_ms, events)
        except BaseException:
            self.close()
            raise

    def _start(self, options: ReplicaOptions, clock_ms: Callable[[], float], events: EventSink) -> None:
        surroundings = self._surroundings
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
            StepPredictor(self._step_model(options, config)),
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
        """Bring adapters that are cold from now on to the device as `--cold-start` says.

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
        self._warm_up()
        self._choose_policy()

    def close(self) -> None:
        """End its CPU workers; it answers nothing any more."""
        try:
            if self._surroundings.device.type == "cuda":
                # Steps under way may still read what is shared with them.
                torch.cuda.synchronize(self._surroundings.device)
        finally:
            if self._assistant is not None:
                self._assistant.close()

    def check_integrity(self) -> None:
        """For tests, after every step.

        Raises:
            AssertionError: the engine's books do not add up.
        """
        self._engine.scheduler.check_integrity()
        self._surroundings.host_store.check_integrity()

    def _step_model(self, options: ReplicaOptions, config: EngineConfig) -> StepModel | None:
        profile = self._surroundings.profile
        if profile is None:
            return None
        is_padded = options.lora_kernel != UnpaddedForm.kernel
        return StepModel.of(profile, is_padded=is_padded, max_batch_tokens=config.max_batch_tokens)

    def _choose_policy(self) -> None:
        break_even = self._surroundings.break_even
        if break_even is not None and self._link_gbps is not None:
            break_even = break_even.emulated(self._link_gbps)
        self._engine.scheduler.cold_starts.policy = choose_policy(self._cold_start, break_even)

    def _make_runner(self, decoder: Decoder, config: EngineConfig) -> Runner:
        host_store = self._surroundings.host_store
        if not self._surroundings.copies_adapters:
            return ModelRunner(
                decoder, host_store, config.num_kv_blocks, config.kv_block_tokens, self._assistant
            )
        return GpuRunner(decoder, host_store, config, self._link.lane, self._assistant)

    def _warm_up(self) -> None:
        """Steps over another link are other graphs."""
        if isinstance(self._runner, GpuRunner):
            self._runner.warm_up(self._used_groups)

    @cached_property
    def _used_groups(self) -> frozenset[int]:
        """Fused groups that some adapter changes."""
        adapters = self._surroundings.adapters
        return adapters.find_used_groups(adapters.library, self._surroundings.base.config.shape)

    def _open_text(self, request: Request) -> TextStream:
        tokenizer = self._surroundings.tokenizer
        assert tokenizer is not None
        return Detokenizer(tokenizer, request.prompt_token_ids, request.sampling.stop)
