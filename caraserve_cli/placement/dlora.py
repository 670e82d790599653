"""Reactive migration, as dLoRA balances a fleet (Wu et al., OSDI 2024)."""

from __future__ import annotations

import numpy as np

from caraserve_cli.perf.batch_load import BatchLoads, FloatArray
from caraserve_cli.placement.holders import find_room
from caraserve_cli.placement.loads import ReplicaLoads
from caraserve_cli.placement.migration import AdapterMigration, Migration, RequestMigration
from caraserve_cli.placement.request_facts import RequestFacts
from caraserve_cli.placement.tie_break import drawn_by, with_fewest

# A replica is overloaded when it has so many times the work of the one with the least. Chosen, not measured.
_IMBALANCE = 1.5
# Requests that one rebalancing moves at most, so that it takes a few milliseconds. Chosen, not measured.
_MOST_REQUESTS = 64


class DloraPlacement:
    """Requests go where their adapter is, and move when that turns out badly.

    `choose`: of the replicas with room that have the adapter on the device or on its way there, or of all
    with room if none has it, the one with the least work. `rebalance`: as long as one replica has
    `_IMBALANCE` times the work of another, its request that was placed last moves there, and its adapter
    too, if that gives it less to wait for.

    Work is the time until all that are on a replica have ended. dLoRA solves an integer program over the most
    and the least loaded replicas, and moves running requests with their caches too. Here pairs are taken
    greedily, and only those move that have no first token yet: an engine keeps its caches.
    """

    name = "dlora"

    def choose(self, request: RequestFacts, loads: ReplicaLoads) -> int | None:
        """See `Placement.choose`."""
        roomy, holders = find_room(request, loads)
        if not len(roomy):
            return None
        candidates = holders if len(holders) else roomy
        work_ms = _Work(loads).work_ms()[candidates]
        candidates = candidates[work_ms == work_ms.min()]
        return drawn_by(request.id, with_fewest(loads.num_requests, candidates), loads.keys)

    def rebalance(self, loads: ReplicaLoads) -> list[Migration]:
        """See `MigratingPlacement.rebalance`. An adapter comes before the first request that needs it."""
        migrations: dict[Migration, None] = {}
        work = _Work(loads)
        for _ in range(_MOST_REQUESTS):
            pair = work.most_and_least()
            if pair is None:
                break
            source, target = pair
            request = work.next_to_move(source)
            if not work.move_if_better(request, source, target):
                continue
            if request.adapter is not None and not loads.places.has(request.adapter, target):
                migrations.setdefault(AdapterMigration(request.adapter, source, target))
            migrations[RequestMigration(request.id, source, target)] = None
        return list(migrations)


class _Work:
    """What each replica has to do, as it is or as a plan would have it."""

    def __init__(self, loads: ReplicaLoads) -> None:
        self._loads = loads
        self._num_requests = loads.num_requests.copy()
        self._backlog_tokens = loads.backlog_tokens.copy()
        self._output_tokens = loads.output_tokens.copy()
        self._num_movable = loads.num_requests - loads.num_running
        self._movable: dict[int, list[RequestFacts]] = {}

    def work_ms(self) -> FloatArray:
        """Milliseconds until all have ended, shape [N]: the prompts, and then steps of as many requests as
        run at once. The adapters counted are those of the requests that are there now."""
        loads = self._loads
        now = loads.batch_of_requests()
        step_ms = loads.step_models.decode_ms(BatchLoads(self._num_requests, now.ranks, now.kv_tokens))
        steps = self._output_tokens / np.clip(self._num_requests, 1, loads.capacities.max_running)
        prompts_ms = loads.step_models.prompts_ms(
            self._backlog_tokens, loads.queue_ranks(), loads.num_running
        )
        return prompts_ms + step_ms * steps

    def most_and_least(self) -> tuple[int, int] | None:
        """The replica with the most work of those that have requests to move, and the one with the least of
        those that take more; None if there is no such pair, or it is balanced."""
        work_ms, loads = self.work_ms(), self._loads
        takes_more = loads.is_open & (self._num_requests < loads.capacities.max_requests)
        if not takes_more.any() or not self._num_movable.any():
            return None
        most = int(np.where(self._num_movable > 0, work_ms, -np.inf).argmax())
        least = int(np.where(takes_more, work_ms, np.inf).argmin())
        return (most, least) if work_ms[most] > _IMBALANCE * work_ms[least] else None

    def next_to_move(self, replica: int) -> RequestFacts:
        """The request that was placed last of those that can move; each is considered once."""
        movable = self._movable.setdefault(replica, self._loads.queued_on(replica))
        self._num_movable[replica] -= 1
        return movable.pop()

    def move_if_better(self, request: RequestFacts, source: int, target: int) -> bool:
        """Move a request that fits `target` alone, if all there would end before all on `source` do, the copy
        of its adapter included; whether it was moved."""
        loads = self._loads
        if not loads.fits_alone(request)[target]:
            return False
        copy_ms = 0.0
        if request.adapter is not None and not loads.places.has(request.adapter, target):
            copy_ms = max(0.0, float(loads.link_free_ms[target]) - loads.now_ms)
            copy_ms += loads.cold_times.copy_there_ms(request.adapter_bytes, target)
        source_ms = self.work_ms()[source]
        self._add(request, target, +1)
        if self.work_ms()[target] + copy_ms >= source_ms:
            self._add(request, target, -1)
            return False
        self._add(request, source, -1)
        return True

    def _add(self, request: RequestFacts, replica: int, change: int) -> None:
        self._num_requests[replica] += change
        self._backlog_tokens[replica] += change * request.prompt_tokens
        self._output_tokens[replica] += change * request.output_tokens
