"""What every replica of a fleet has to do, updated as requests are placed, start and end.

A structure of arrays: a policy compares a thousand replicas in a few numpy expressions. Knows no policy, and
no clock but the one given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from caraserve_cli.perf.batch_load import BatchLoad, BatchLoads, BoolArray, FloatArray, RankSums
from caraserve_cli.perf.step_correction import StepCorrections
from caraserve_cli.perf.step_models import StepModels
from caraserve_cli.placement.adapter_places import AdapterPlaces
from caraserve_cli.placement.bound_tally import BoundTally
from caraserve_cli.placement.capacities import Capacities
from caraserve_cli.placement.cold_times import ColdTimes
from caraserve_cli.placement.rank_tally import RankTally
from caraserve_cli.placement.replica_facts import ReplicaFacts
from caraserve_cli.placement.request_facts import RequestFacts
from caraserve_cli.placement.tie_break import replica_keys


@dataclass(slots=True)
class _Placed:
    facts: RequestFacts
    replica: int
    token_bound_ms: float
    interruption_ms: float
    has_started: bool = False


class ReplicaLoads:
    """The loads of N replicas. A request is *queued* until its first token is there, then it *runs*.

    Attributes, all of shape [N]; only this class writes them:
        num_requests: queued and running.
        num_running: of these.
        prompt_tokens, output_tokens: of all of them, the latter as expected when they were placed.
        backlog_tokens: of the prompts of the queued ones. A prompt counts in full until its first token.
        interruptions_ms: how much longer than decoding steps those with the prompts of all of them are.
        pool_bytes: of the adapters of all of them, each adapter once.
        link_free_ms, cpu_free_ms: when the link and the CPU workers will have done what they have to do.
        is_open: whether requests may be placed there.
        keys: hashes of the replicas' names.
        capacities: what they hold at most.

    Args:
        replicas: in the order of their indices; names are distinct.
        clock_ms: the time now.

    Raises:
        ValueError: two replicas have the same name.
    """

    def __init__(self, replicas: Sequence[ReplicaFacts], clock_ms: Callable[[], float]) -> None:
        if len({replica.name for replica in replicas}) < len(replicas):
            raise ValueError("two replicas have the same name")
        num_replicas = len(replicas)
        self.replicas = tuple(replicas)
        self.keys = replica_keys([replica.name for replica in replicas])
        self.capacities = Capacities(replicas)
        # One request more than are there is asked about.
        self._models = [replica.step_model for replica in replicas]
        self.step_models = StepModels(self._models, 1 + max(self.capacities.max_requests, default=0))
        self.cold_times = ColdTimes(replicas)
        self.places = AdapterPlaces(num_replicas)
        self._token_bounds = BoundTally(num_replicas)

        self.num_requests, self.num_running = np.zeros((2, num_replicas), dtype=np.int64)
        self.prompt_tokens, self.output_tokens, self.backlog_tokens = np.zeros((3, num_replicas))
        self.pool_bytes, self.interruptions_ms = np.zeros((2, num_replicas))
        self.link_free_ms, self.cpu_free_ms = np.full((2, num_replicas), -math.inf)
        self.is_open = np.ones(num_replicas, dtype=np.bool_)

        # Predicted when they are asked for: much may happen on a replica before.
        self._decode_ms, self._backlog_ms = np.zeros((2, num_replicas))
        self._common_bound_ms = np.full(num_replicas, math.inf)
        self._unpredicted: set[int] = set()

        self._clock_ms = clock_ms
        self._adapters = RankTally(num_replicas)  # of each adapter once
        self._requests = RankTally(num_replicas)  # of every request
        self._queue = RankTally(num_replicas)  # of every queued request
        self._placed: dict[str, _Placed] = {}
        self._queued_ids: list[dict[str, None]] = [{} for _ in replicas]  # in the order of their placement

    @property
    def now_ms(self) -> float:
        """The time now."""
        return self._clock_ms()

    @property
    def decode_ms(self) -> FloatArray:
        """Of a decoding step of all of them, shape [N]."""
        self._predict()
        return self._decode_ms

    @property
    def backlog_ms(self) -> FloatArray:
        """Of the steps that compute the queued prompts, shape [N]."""
        self._predict()
        return self._backlog_ms

    @property
    def common_bound_ms(self) -> FloatArray:
        """For one token, shape [N]; if all of them had it, and not their own ones, a millisecond more would
        count as much (`BoundTally.common_ms`); infinite where nobody has one."""
        self._predict()
        return self._common_bound_ms

    # What happens

    def place(self, request: RequestFacts, replica: int) -> None:
        """A request goes to a replica; if its adapter is not there yet, its copying begins when the link is
        free.

        Raises:
            ValueError: a request with this id is placed already, or the replica takes no more.
        """
        if request.id in self._placed:
            raise ValueError(f"request '{request.id}' is placed already")
        if self.num_requests[replica] >= self.capacities.max_requests[replica] or not self.is_open[replica]:
            raise ValueError(f"replica '{self.replicas[replica].name}' takes no more requests")
        now_ms = self.now_ms
        interruption_ms = self._models[replica].interruption_ms(
            request.prompt_tokens, int(self.num_requests[replica]) + 1
        )
        placed = _Placed(request, replica, request.token_bound_ms(now_ms), interruption_ms)
        self._placed[request.id] = placed
        self._queued_ids[replica][request.id] = None
        self.backlog_tokens[replica] += request.prompt_tokens
        self._queue.add(replica, request.lora_rank)
        self._requests.add(replica, request.lora_rank)
        self._count(placed, +1)
        if request.adapter is not None:
            self._use_adapter(request, request.adapter, replica, now_ms)
        self._unpredicted.add(replica)

    def start(self, request_id: str) -> None:
        """A request has its first token, again perhaps.

        Raises:
            KeyError: it is not placed.
        """
        placed = self._placed[request_id]
        if not placed.has_started:
            placed.has_started = True
            self._leave_queue(placed)
            self.num_running[placed.replica] += 1
            self._unpredicted.add(placed.replica)

    def end(self, request_id: str) -> RequestFacts:
        """A request leaves its replica, queued or running: answered, failed, or to be placed elsewhere.

        Raises:
            KeyError: it is not placed.
        """
        placed = self._placed.pop(request_id)
        request, replica = placed.facts, placed.replica
        if placed.has_started:
            self.num_running[replica] -= 1
        else:
            self._leave_queue(placed)
        self._count(placed, -1)
        self._requests.remove(replica, request.lora_rank)
        if request.adapter is not None and self.places.end_use(request.adapter, replica):
            self._adapters.remove(replica, request.lora_rank)
            self.pool_bytes[replica] -= request.adapter_bytes
        self._unpredicted.add(replica)
        return request

    def close(self, replica: int) -> list[RequestFacts]:
        """A replica is gone, with all that was on its device. The requests that must be placed again, in the
        order of their placement."""
        self.is_open[replica] = False
        lost = [request_id for request_id, placed in self._placed.items() if placed.replica == replica]
        requests = [self.end(request_id) for request_id in lost]
        self.places.forget_replica(replica)
        self.link_free_ms[replica] = self.cpu_free_ms[replica] = -math.inf
        return requests

    def shut(self, replica: int) -> None:
        """Nobody more may be placed on a replica; who is there stays."""
        self.is_open[replica] = False

    def open(self, replica: int) -> None:
        """A replica is there again, empty, or takes requests again."""
        self.is_open[replica] = True

    def note_link_busy(self, replica: int, until_ms: float) -> None:
        """A replica reports when its link will have done all that it has to copy."""
        self.link_free_ms[replica] = until_ms

    def note_corrections(self, replica: int, corrections: StepCorrections) -> None:
        """A replica reports what its steps say of its model."""
        self._models[replica] = self._models[replica].corrected(corrections)
        self.step_models.correct(replica, corrections)
        self._unpredicted.add(replica)

    def note_cpu_busy(self, replica: int, until_ms: float) -> None:
        """A replica reports when its CPU workers will have computed all that they have to."""
        self.cpu_free_ms[replica] = until_ms

    # What is asked

    def has_room(self, request: RequestFacts) -> BoolArray:
        """Where a request may be placed, shape [N]: the replica is open, takes one more, and would hold it
        and its adapter if it were alone. It may have to wait there until others end."""
        has_room = self.fits_alone(request)
        has_room &= self.num_requests < self.capacities.max_requests
        has_room &= self.is_open
        return has_room

    def fits_alone(self, request: RequestFacts) -> BoolArray:
        """Which replicas, open or not, would hold a request and its adapter if it were alone, shape [N]."""
        fits = self.capacities.hold_alone(request)
        if request.adapter is not None and (unusable := self.places.unusable_on(request.adapter)):
            fits[list(unusable)] = False
        return fits

    def queued_on(self, replica: int) -> list[RequestFacts]:
        """Requests that wait on a replica for their first token, in the order of their placement."""
        return [self._placed[request_id].facts for request_id in self._queued_ids[replica]]

    def num_new(self, request: RequestFacts) -> FloatArray | None:
        """1.0 where nobody uses a request's adapter, 0.0 where anyone does, shape [N]; None without one."""
        return None if request.adapter is None else self.places.num_new(request.adapter)

    def shortage(self, request: RequestFacts, num_new: FloatArray | None) -> FloatArray:
        """The share of those on each replica that must end before it has room for a request, as far as
        answers are as long as expected: see `Capacities.shortage`."""
        return self.capacities.shortage(
            request, num_new, self.num_requests, self.prompt_tokens + self.output_tokens, self.pool_bytes
        )

    def queue_ranks(self, plus: RequestFacts | None = None) -> RankSums[FloatArray]:
        """Of the requests queued on each replica, and one more: what PrePerf is asked about."""
        return self._queue.with_one(plus.lora_rank) if plus else self._queue.sums

    def batch(self, plus: RequestFacts, num_new: FloatArray | None) -> BatchLoads:
        """All on each replica, and one more whose `num_new` is given, as a kernel meets them that reads each
        adapter once: what DecPerf is asked about. Without the one more it is `decode_ms`."""
        return self._batch(self._adapters.with_one(plus.lora_rank, num_new), plus)

    def batch_of_requests(self, plus: RequestFacts | None = None) -> BatchLoads:
        """The same where an adapter counts for each of its requests, as in the paper."""
        ranks = self._requests.with_one(plus.lora_rank) if plus else self._requests.sums
        return self._batch(ranks, plus)

    def _batch(self, ranks: RankSums[FloatArray], plus: RequestFacts | None) -> BatchLoads:
        kv_tokens = self.prompt_tokens + self.output_tokens / 2
        if plus is None:
            return BatchLoads(self.num_requests, ranks, kv_tokens)
        return BatchLoads(self.num_requests + 1, ranks, kv_tokens + plus.mean_kv_tokens)

    # Counting

    def _count(self, placed: _Placed, change: int) -> None:
        replica = placed.replica
        self.num_requests[replica] += change
        self.prompt_tokens[replica] += change * placed.facts.prompt_tokens
        self.output_tokens[replica] += change * placed.facts.output_tokens
        self.interruptions_ms[replica] += change * placed.interruption_ms
        self._token_bounds.add(replica, placed.token_bound_ms, change)

    def _leave_queue(self, placed: _Placed) -> None:
        self.backlog_tokens[placed.replica] -= placed.facts.prompt_tokens
        self._queue.remove(placed.replica, placed.facts.lora_rank)
        del self._queued_ids[placed.replica][placed.facts.id]

    def _use_adapter(self, request: RequestFacts, adapter: str, replica: int, now_ms: float) -> None:
        if self.places.use(adapter, replica):
            self._adapters.add(replica, request.lora_rank)
            self.pool_bytes[replica] += request.adapter_bytes
        if not self.places.has(adapter, replica):
            begin_ms = max(now_ms, float(self.link_free_ms[replica]))
            ready_ms = begin_ms + self.cold_times.copy_there_ms(request.adapter_bytes, replica)
            self.places.note_loading(adapter, replica, ready_ms)
            self.link_free_ms[replica] = ready_ms

    def _predict(self) -> None:
        """A replica's own times change with what happens there, and not with what is asked."""
        while self._unpredicted:
            replica = self._unpredicted.pop()
            model, num_requests = self._models[replica], int(self.num_requests[replica])
            kv_tokens = self.prompt_tokens[replica] + self.output_tokens[replica] / 2
            batch = BatchLoad(num_requests, self._adapters.of(replica), float(kv_tokens))
            decode_ms = model.decode_ms(batch)
            self._decode_ms[replica] = decode_ms
            self._common_bound_ms[replica] = self._bound_of_all_ms(replica, num_requests, decode_ms)
            self._backlog_ms[replica] = model.prompts_ms(
                float(self.backlog_tokens[replica]), self._queue.of(replica), int(self.num_running[replica])
            )

    def _bound_of_all_ms(self, replica: int, num_requests: int, decode_ms: float) -> float:
        if not num_requests:
            return math.inf
        interrupted_ms = self.interruptions_ms[replica] * num_requests / self.output_tokens[replica]
        return self._token_bounds.common_ms(replica, num_requests, float(decode_ms + interrupted_ms))
