"""One replica in this process: the engine with everything it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property

import torch

from caraserve_cli.coldstart.policy import Auto
from caraserve_cli.config import EngineConfig
from caraserve_cli.core import Failure, Request
from caraserve_cli.engine.by_slack import make_scheduling_policy
from caraserve_cli.engine.engine import Engine, TextStream
from caraserve_cli.engine.gpu_runner import GpuRunner
from caraserve_cli.engine.leading_runner import LeadingRunner
from caraserve_cli.engine.model_runner import ModelRunner
from caraserve_cli.engine.runner import Runner
from caraserve_cli.errors import RowError
from caraserve_cli.events import EventSink, StepRecord
from caraserve_cli.fleet.cold_start import (
    DeviceLink,
    choose_policy,
    start_assistant,
    wants_workers,
)
from caraserve_cli.fleet.followers import FollowerProcesses
from caraserve_cli.fleet.options import ReplicaOptions
from caraserve_cli.fleet.replica import Outcome
from caraserve_cli.fleet.surroundings import Surroundings
from caraserve_cli.fleet.tensor_parallel import device_of, start_followers
from caraserve_cli.model.checkpoint import load_decoder, random_decoder
from caraserve_cli.model.decoder import Decoder
from caraserve_cli.model.detokenizer import Detokenizer
from caraserve_cli.model.rope import Rope
from caraserve_cli.perf.step_correction import StepCorrections
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
        self._device = surroundings.device
        if options.tensor_parallel > 1:
            self._device = device_of(0, self._device)
        self._followers: FollowerProcesses | None = None
        self._leading_runner: LeadingRunner | None = None
        self._link = DeviceLink(self._device)
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
        base, dtype, device = surroundings.base, surroundings.dtype, self._device
        if options.tensor_parallel > 1:
            self._followers = start_followers(surroundings, options)
        collective = None if self._followers is None else self._followers.group
        if base.folder is None or options.weights == "random":
            decoder = random_decoder(base.config, dtype, device, options.seed, collective)
        else:
            decoder = load_decoder(base.folder, base.config, dtype, device, collective)
        config = surroundings.engine_config
        self._runner = self._make_runner(decoder, config)
        rope: Rope = decoder.rope
        self._predictor = StepPredictor(surroundings.step_model)
        self._engine = Engine(
            config,
            self._runner,
            frozenset(base.config.eos_token_ids),
            rope.variant,
            None if surroundings.tokenizer is None else self._open_text,
            clock_ms,
            events,
            base.config.shape.num_layers,
            self._predictor,
            make_scheduling_policy(options.scheduling, config, self._predictor),
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

    @property
    def decoding_ids(self) -> Iterator[str]:
        """Requests that run and have a token."""
        scheduler = self._engine.scheduler
        for sequence in (*scheduler.running, *scheduler.ending):
            if sequence.timings.first_token_ms is not None:
                yield sequence.request.id

    @property
    def resident_adapters(self) -> Iterator[str]:
        """Adapters that are on the device or on their way there."""
        return iter(self._engine.scheduler.residency)

    @property
    def link_backlog_ms(self) -> float:
        """How long the copies under way will still take."""
        return self._engine.scheduler.cold_starts.supply.link_backlog_ms

    @property
    def step_corrections(self) -> StepCorrections:
        """What its steps so far say of the measured model of its machine."""
        return self._predictor.corrections

    @property
    def num_cpu_workers(self) -> int:
        """That assist cold starts."""
        return 0 if self._assistant is None else self._assistant.num_workers

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests; one that can never be answered comes back as a failure from `poll`."""
        for request in requests:
            try:
                self._engine.add_request(request, self._surroundings.describe_adapter(request))
            except RowError as error:
                self._refused.append(Failure(request, error.code, error.message))

    def poll(self, most_wait_s: float = 0.0) -> list[Outcome]:
        """Run one engine step, which takes as long as it takes."""
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

    def use_scheduling(self, name: str) -> None:
        """Serve requests from now on as `--scheduling` says. None may be unfinished.

        Raises:
            OptionError: there is no such policy.
        """
        policy = make_scheduling_policy(name, self._engine.config, self._predictor)
        self._engine.scheduler.use_policy(policy)

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
        """End its CPU workers, and the processes that hold the base with it; it answers nothing any more."""
        try:
            if self._surroundings.device.type == "cuda":
                # Steps under way may still read what is shared with them.
                torch.cuda.synchronize(self._device)
        finally:
            if self._leading_runner is not None:
                self._leading_runner.close()
            if self._followers is not None:
                self._followers.close()
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
        elif isinstance(self._runner, LeadingRunner):
            self._runner.warm_up(self._used_groups)

    def _make_runner(self, decoder: Decoder, config: EngineConfig) -> Runner:
        host_store = self._surroundings.host_store
        runner: ModelRunner | GpuRunner
        if self._surroundings.copies_adapters:
            runner = GpuRunner(decoder, host_store, config, self._link.lane, self._assistant)
        else:
            runner = ModelRunner(
                decoder, host_store, config.num_kv_blocks, config.kv_block_tokens, self._assistant
            )
        if self._followers is None:
            return runner
        self._followers.meet()
        self._leading_runner = LeadingRunner(runner, self._followers)
        return self._leading_runner

    @cached_property
    def _used_groups(self) -> frozenset[int]:
        """Fused groups that some adapter changes."""
        adapters = self._surroundings.adapters
        return adapters.find_used_groups(adapters.library, self._surroundings.base.config.shape)

    def _open_text(self, request: Request) -> TextStream:
        tokenizer = self._surroundings.tokenizer
        assert tokenizer is not None
        return Detokenizer(tokenizer, request.prompt_token_ids, request.sampling.stop)
