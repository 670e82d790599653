"""Replicas as Ray actors: each in a process of its own, on this machine or others.

An actor is asked for news once, and again when it has told them; it works meanwhile. Whatever it was sent is
in the order in which it was sent: Ray runs the calls of one concurrency group of one thread in their order.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from caraserve_cli import __version__
from caraserve_cli.adapters.library import AdapterLibrary
from caraserve_cli.core import Request
from caraserve_cli.errors import CaraServeError, InputError
from caraserve_cli.fleet.crew import CrewEvent, Died, Replaced, Told
from caraserve_cli.fleet.host import asked_threads, host_facts, share_beside, share_out
from caraserve_cli.fleet.host_clock import SAME_CLOCK, measure_offset, monotonic_ms
from caraserve_cli.fleet.hosted_replica import HostedReplica, as_error
from caraserve_cli.fleet.messages import HostFacts, Refusal, ReplicaDescription
from caraserve_cli.fleet.options import ReplicaOptions
from caraserve_cli.fleet.parcels import Parcels
from caraserve_cli.fleet.ray_calls import MOST_SILENCE_S, PLACES_S, RayCalls, why_unanswered
from caraserve_cli.fleet.ray_cluster import RayCluster
from caraserve_cli.fleet.ray_seat import RaySeat

# An actor with nothing to tell answers all the same, so often. Chosen, not measured.
_POLL_S = 1.0
# After so long it is asked whether any machine of the cluster is there. Chosen, not measured.
_QUIET_S = 10.0


class RayCrew:
    """See `Crew`.

    Args:
        cluster: whose machines they run on; it stays the caller's.
        options: of every replica.
        num_replicas: at least 1.
        is_on_gpu: whether each takes a GPU.
        library: of the adapters, as this machine sees them; a machine that does not is sent their files.
        clock_ms: milliseconds since the start of the run.
        hosted: what runs in each process.

    Raises:
        CaraServeError: a replica cannot be made, for a reason that a user can cause.
    """

    def __init__(
        self,
        cluster: RayCluster,
        options: ReplicaOptions,
        num_replicas: int,
        *,
        is_on_gpu: bool,
        library: AdapterLibrary,
        clock_ms: Callable[[], float],
        hosted: type[HostedReplica] = HostedReplica,
    ) -> None:
        self._cluster, self._options, self._is_on_gpu = cluster, options, is_on_gpu
        self._base = options.base if Path(options.base).is_dir() else None
        self._paths = [str(root) for root in options.adapter_roots]
        self._paths += [] if self._base is None else [self._base]
        self._parcels = Parcels(library)
        self._clock_ms, self._hosted = clock_ms, hosted
        self._own_boot_id = host_facts().boot_id
        self._asked_threads = asked_threads()
        self._calls = RayCalls()
        self._checked_s = 0.0
        self._seats: list[RaySeat] = []
        self._descriptions: list[ReplicaDescription] = []
        try:
            self._seats = [RaySeat(f"replica-{number}", self._hire()) for number in range(num_replicas)]
            self._start_all()
        except BaseException:
            self.close()
            raise

    @property
    def names(self) -> Sequence[str]:
        return [seat.name for seat in self._seats]

    @property
    def descriptions(self) -> Sequence[ReplicaDescription]:
        return self._descriptions

    @property
    def hosts(self) -> Sequence[HostFacts]:
        """Where each replica is, or was."""
        return [seat.host for seat in self._seats if seat.host is not None]

    @property
    def clock_error_ms(self) -> float:
        """The largest error of a replica's clock, when it was measured."""
        return max(seat.offset.error_ms for seat in self._seats)

    def submit(self, replica: int, requests: Sequence[Request]) -> None:
        """See `Crew.submit`."""
        seat = self._seats[replica]
        origin_ms = monotonic_ms() - self._clock_ms() + seat.offset.ahead_ms
        names: list[str] = []
        if seat.shipped is not None:
            names = list(dict.fromkeys(each.adapter for each in requests if each.adapter is not None))
            names = [name for name in names if name not in seat.shipped]
            seat.shipped.update(names)
        files = [self._parcels.weights(name) for name in names]
        submit = seat.actor.submit.options(concurrency_group="submit")
        # Adapters that cannot be written there fail there: what comes of it is heard like all else.
        self._calls.add(submit.remote(list(requests), origin_ms, names, *files), replica, "submit")

    def wait(self, most_wait_s: float) -> list[CrewEvent]:
        """See `Crew.wait`.

        Raises:
            InputError: the whole cluster is gone.
        """
        self._cluster.check_head()
        answers = self._calls.wait(most_wait_s)
        events = [event for answer in answers if (event := self._take(answer)) is not None]
        return events + self._find_silent()

    def replace(self, replica: int) -> None:
        """See `Crew.replace`."""
        seat = self._seats[replica]
        seat.actor = self._hire()
        self._calls.add(seat.actor.where.remote(self._paths), replica, "where")

    def close(self) -> None:
        """See `Crew.close`."""
        self._calls.clear()
        for seat in self._seats:
            seat.dismiss()

    # Starting

    def _hire(self) -> Any:
        """A process for a replica, as soon as there is room for one."""
        actor_class = ray.remote(
            num_cpus=0 if self._is_on_gpu else 1,
            num_gpus=1 if self._is_on_gpu else 0,
            max_restarts=0,
            max_task_retries=0,
            concurrency_groups={"submit": 1, "poll": 1},
            scheduling_strategy="SPREAD",
        )(self._hosted)
        return actor_class.remote()

    def _start_all(self) -> None:
        try:
            hosts = ray.get([seat.actor.where.remote(self._paths) for seat in self._seats], timeout=PLACES_S)
            sharers = Counter(host.machine for host in hosts)
            free_bytes = {host.machine: host.free_bytes for host in hosts}
            num_shares: Counter[tuple[str, str]] = Counter()
            for seat, host in zip(self._seats, hosts, strict=True):
                self._seat(seat, host)
                seat.share = share_out(
                    host.cores,
                    free_bytes[host.machine],
                    num_shares[host.machine],
                    sharers[host.machine],
                    self._asked_threads,
                )
                num_shares[host.machine] += 1
            starts = [self._start(seat) for seat in self._seats]
            for seat, started in zip(self._seats, self._await_starts(starts), strict=True):
                if isinstance(started, Refusal):
                    raise as_error(started, seat.place)
                self._descriptions.append(started)
        except GetTimeoutError as error:
            raise InputError(
                f"--replicas: some of {len(self._seats)} found no room in {PLACES_S:.0f} s; ask for fewer, "
                "or free the cluster"
            ) from error
        except RayError as error:
            raise InputError(f"a replica ended while it started: {why_unanswered(error)}") from error
        for replica, seat in enumerate(self._seats):
            self._ask(replica, seat)

    def _await_starts(self, starts: Sequence[Any]) -> Sequence[Any]:
        most_s = MOST_SILENCE_S["start"]
        try:
            answers: Sequence[Any] = ray.get(list(starts), timeout=most_s)
        except GetTimeoutError as error:
            raise InputError(
                f"--replicas: some of {len(starts)} have not started in {most_s:.0f} s; look at the machines "
                "that they are on"
            ) from error
        return answers

    def _seat(self, seat: RaySeat, host: HostFacts) -> None:
        """Somebody is there: is all else there that a replica needs?

        Raises:
            InputError: it is not.
        """
        seat.host = host
        if host.version != __version__:
            raise InputError(
                f"--ray: machine '{host.host_name}' has caraserve {host.version}, and this one has "
                f"{__version__}; install the same everywhere"
            )
        if self._base in host.missing_paths:
            raise InputError(
                f"--ray: machine '{host.host_name}' has no '{self._base}'; put the base there, under the "
                "same path, or on a file system that all machines see"
            )
        seat.shipped = set() if host.missing_paths else None
        if host.missing_paths and self._options.lora_kernel == "bgmv":
            raise InputError(
                f"--lora-kernel: 'bgmv' needs the ranks of all adapters, and machine '{host.host_name}' does "
                f"not see '{host.missing_paths[0]}'; put them there, or use mbgmv"
            )
        seat.offset = SAME_CLOCK
        if host.boot_id != self._own_boot_id:
            most_s = MOST_SILENCE_S["poll"]
            seat.offset = measure_offset(lambda: float(ray.get(seat.actor.now_ms.remote(), timeout=most_s)))

    def _start(self, seat: RaySeat) -> Any:
        if seat.shipped is None:
            return seat.actor.start.remote(self._options, seat.share)
        options = replace(self._options, adapter_roots=())
        return seat.actor.start.remote(options, seat.share, self._parcels.configs)

    # What actors answer

    def _ask(self, replica: int, seat: RaySeat) -> None:
        call = seat.actor.poll.options(concurrency_group="poll")
        self._calls.add(call.remote(_POLL_S), replica, "poll")

    def _find_silent(self) -> list[CrewEvent]:
        """Those that should have answered long ago.

        Raises:
            InputError: the whole cluster is gone.
        """
        now_s = time.monotonic()
        if min(self._calls.longest_s(), now_s - self._checked_s) < _QUIET_S:
            return []
        self._checked_s = now_s
        self._cluster.check_machines()
        return [
            self._end(call.replica, f"it has not answered for {now_s - call.since_s:.0f} s")
            for call in self._calls.overdue()
        ]

    def _end(self, replica: int, reason: str) -> Died:
        """One is dead, or taken for it: nothing more is heard of it."""
        self._seats[replica].dismiss()
        self._seats[replica].is_dead = True
        self._calls.forget(replica)
        return Died(replica, reason)

    def _take(self, answer: Any) -> CrewEvent | None:
        call = self._calls.take(answer)
        if call is None:
            return None
        replica, stage, _ = call
        seat = self._seats[replica]
        try:
            told = ray.get(answer)
            if stage == "submit":
                return None
            if stage == "poll":
                self._ask(replica, seat)
                return Told(replica, told)
            if stage == "where":
                self._reseat(seat, told)
                self._calls.add(self._start(seat), replica, "start")
                return None
            if isinstance(told, Refusal):
                raise as_error(told, seat.place)
            self._descriptions[replica] = told
            self._ask(replica, seat)
            return Replaced(replica, told)
        except (RayError, CaraServeError) as error:
            return self._end(replica, why_unanswered(error))

    def _reseat(self, seat: RaySeat, host: HostFacts) -> None:
        """A new process has the share of the dead one where that was, or elsewhere what one more may have."""
        before, share = seat.host, seat.share
        self._seat(seat, host)
        seat.is_dead = False
        if before is not None and share is not None and before.machine == host.machine:
            return
        there = (each for each in self._seats if each is not seat and not each.is_dead)
        others = [
            each.share
            for each in there
            if each.share is not None and each.host is not None and each.host.machine == host.machine
        ]
        seat.share = share_beside(others, host.cores, host.free_bytes, self._asked_threads)
