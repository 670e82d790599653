"""One replica of a benchmark: started, asked, and told which adapters are to be on its device.

Knows how requests reach it, all at once or each in its time. Does not know what is measured of the answers.
"""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from caraserve_cli.adapters.extents import aligned_bytes
from caraserve_cli.bench.cold_starts import CACHED, STREAM, emulate_link, use_cold_start
from caraserve_cli.core import Request, SamplingParams
from caraserve_cli.events import StepRecord
from caraserve_cli.fleet.local import LocalReplica
from caraserve_cli.fleet.options import ReplicaOptions
from caraserve_cli.fleet.replica import Outcome
from caraserve_cli.fleet.surroundings import Surroundings
from caraserve_cli.job.arrivals import Arrivals
from caraserve_cli.job.clock import RunClock
from caraserve_cli.perf.step_correction import StepCorrections


class _StepLog:
    """An event sink that keeps what it is told."""

    def __init__(self) -> None:
        self.steps: list[StepRecord] = []

    def on_step(self, record: StepRecord) -> None:
        self.steps.append(record)


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """Requests that were answered, and the steps that did it; `started_ms` on the replica's clock."""

    started_ms: float
    outcomes: tuple[Outcome, ...]
    steps: tuple[StepRecord, ...]


class BenchReplica:
    """Starts a replica.

    Args:
        surroundings: with every adapter in host memory.
        options: of the replica.
        adapters: names of all that may be brought to the device.
    """

    def __init__(self, surroundings: Surroundings, options: ReplicaOptions, adapters: Sequence[str]) -> None:
        self.vocab_size = surroundings.base.config.shape.vocab_size
        self._surroundings = surroundings
        self._adapters = adapters
        self._log = _StepLog()
        self._clock = RunClock()
        self._replica = LocalReplica(surroundings, options, self._clock, self._log)
        self.synchronize()
        self._clock.start()

    @property
    def num_unfinished(self) -> int:
        """Requests submitted and not yet returned by `poll`."""
        return self._replica.num_unfinished

    @property
    def steps(self) -> Sequence[StepRecord]:
        """Those done since they were last forgotten."""
        return self._log.steps

    @property
    def num_cpu_workers(self) -> int:
        """That assist cold starts."""
        return self._replica.num_cpu_workers

    @property
    def step_corrections(self) -> StepCorrections:
        """What all steps so far say of the measured model of the machine."""
        return self._replica.step_corrections

    def forget_steps(self) -> None:
        """Begin a new list of steps."""
        self._log.steps = []

    def now_ms(self) -> float:
        """Milliseconds since the replica was ready."""
        return self._clock()

    def poll(self) -> list[Outcome]:
        """Run one engine step; what ended with it."""
        return self._replica.poll()

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests; their `arrival_ms` is on the replica's clock."""
        self._replica.submit(requests)

    def fits(self, adapters: Collection[str]) -> bool:
        """Whether all of these adapters can be on the device at once."""
        config = self._surroundings.engine_config
        infos = [self._surroundings.host_store.describe(name) for name in adapters]
        num_bytes = sum(aligned_bytes(info.num_bytes) for info in infos)
        return num_bytes <= config.adapter_memory_bytes and len(infos) <= config.max_resident_adapters

    def keep_adapters(self, wanted: Collection[str]) -> None:
        """Take all adapters but these off the device."""
        self.evict_adapters(name for name in self._adapters if name not in wanted)

    def evict_adapters(self, adapters: Iterable[str]) -> None:
        """Take these adapters off the device, those of them that are there.

        Raises:
            ValueError: one of them is in use.
        """
        self._replica.evict_adapters(adapters)

    def load_adapters(self, adapters: Iterable[str]) -> None:
        """Have these adapters on the device, and answer what is unfinished on the way."""
        sampling = SamplingParams(max_tokens=1, ignore_eos=True)
        self.answer(
            [
                Request(id=name, line=1, prompt_token_ids=(0,), adapter=name, sampling=sampling)
                for name in sorted(adapters)
            ]
        )

    def set_out(self, strategy: str, adapters: Collection[str], link_gbps: float | None) -> None:
        """No adapter on the device, for `cached` all of these; from now on cold ones come by `strategy`,
        over a link of this bandwidth. Nothing may be unfinished, and the replica must have both, see
        `cold_starts.check_replica`."""
        self.keep_adapters(())
        if strategy == CACHED:
            emulate_link(self._replica, None)
            use_cold_start(self._replica, STREAM)
            self.load_adapters(adapters)
        self.use(strategy, link_gbps)

    def use(self, strategy: str, link_gbps: float | None) -> None:
        """From now on cold adapters come by `strategy`, over a link of this bandwidth, None for its own."""
        emulate_link(self._replica, link_gbps)
        use_cold_start(self._replica, strategy)

    def use_scheduling(self, policy: str) -> None:
        """From now on requests are taken by `policy`. Nothing may be unfinished."""
        self._replica.use_scheduling(policy)

    def answer(self, requests: Sequence[Request]) -> list[Outcome]:
        """All at once; what has ended when nothing is unfinished any more."""
        self._replica.submit(requests)
        outcomes: list[Outcome] = []
        while self._replica.num_unfinished:
            outcomes += self._replica.poll()
        return outcomes

    def answer_in_time(self, requests: Sequence[Request], *, keeps_adapters: bool = True) -> Served:
        """Each submitted when it arrives, answered or not what came before it (an open loop).

        Args:
            keeps_adapters: whether an adapter may stay on the device when no unfinished request has it.
            requests: `arrival_ms` counts from the start of this call; on what comes back it is on the
                replica's clock, so that a request that arrives during a step has waited for its end.
        """
        self.settle()
        started_ms = self.now_ms()
        arrivals = Arrivals()
        for request in requests:
            arrivals.add(replace(request, arrival_ms=started_ms + request.arrival_ms))
        outcomes: list[Outcome] = []
        unfinished: Counter[str | None] = Counter()
        leaving: set[str] = set()
        while arrivals or self._replica.num_unfinished:
            now_ms = self.now_ms()
            if due := arrivals.take_due(now_ms):
                self._replica.submit(due)
                unfinished.update(each.adapter for each in due)
            if self._replica.num_unfinished:
                ended = self._replica.poll()
                outcomes += ended
                unfinished.subtract(each.request.adapter for each in ended)
                if not keeps_adapters:
                    leaving |= {each.request.adapter for each in ended if each.request.adapter is not None}
                    leaving = self._evict_unused({name for name in leaving if not unfinished[name]})
            else:
                time.sleep((arrivals.next_ms - now_ms) / 1000)
        return Served(started_ms=started_ms, outcomes=tuple(outcomes), steps=tuple(self._log.steps))

    def _evict_unused(self, adapters: Iterable[str]) -> set[str]:
        """Take adapters off the device that no unfinished request has; those that a step under way still uses
        are what is left."""
        used: set[str] = set()
        for name in adapters:
            try:
                self._replica.evict_adapters([name])
            except ValueError:
                used.add(name)
        return used

    def close(self) -> None:
        """End what belongs to it; it answers nothing any more."""
        self._replica.close()

    def settle(self) -> None:
        """What was left before is not paid for by what is measured next."""
        self.forget_steps()
        gc.collect()
        self.synchronize()

    def synchronize(self) -> None:
        """Wait for the device."""
        if self._surroundings.device.type == "cuda":
            torch.cuda.synchronize(self._surroundings.device)
