"""Replicas in the driver's process that answer at once or when they are told to, and die when told to."""

from __future__ import annotations

from collections.abc import Sequence

from caraserve_cli.config import EngineConfig
from caraserve_cli.core import (
    AdapterInfo,
    BaseShape,
    Bounds,
    ColdStart,
    Completion,
    FinishReason,
    Request,
    SamplingParams,
    Timings,
)
from caraserve_cli.fleet.crew import CrewEvent, Died, Replaced, Told
from caraserve_cli.fleet.messages import Outcome, ReplicaDescription, ReplicaNews

# Of Llama-2-7B.
SHAPE = BaseShape(
    num_layers=32,
    hidden_size=4096,
    num_heads=32,
    num_kv_heads=32,
    head_dim=128,
    intermediate_size=11008,
    vocab_size=32000,
)
LORA_RANKS = (8, 16, 32, 64)


def description(*, max_running: int = 4, kv_tokens: int = 3200) -> ReplicaDescription:
    return ReplicaDescription(
        device="a device",
        memory="a plan",
        config=EngineConfig(
            num_kv_blocks=kv_tokens // 16,
            adapter_memory_bytes=10**9,
            max_context_tokens=2048,
            max_running=max_running,
        ),
        shape=SHAPE,
        dtype="bfloat16",
        profile=None,
        is_padded=False,
        is_on_gpu=True,
        num_cpu_workers=0,
        startup_s=0.0,
    )


def make_request(
    number: int, adapter: str | None = None, *, prompt_tokens: int = 20, max_tokens: int = 10
) -> Request:
    return Request(
        id=f"r{number}",
        line=number,
        prompt_token_ids=tuple(range(prompt_tokens)),
        adapter=adapter,
        sampling=SamplingParams(max_tokens=max_tokens),
        bounds=Bounds(tpot_slo_ms=50.0),
    )


def describe_adapter(request: Request) -> AdapterInfo | None:
    """Adapters are called by numbers, and have one of a few ranks."""
    if request.adapter is None:
        return None
    lora_rank = LORA_RANKS[int(request.adapter) % len(LORA_RANKS)]
    return AdapterInfo(name=request.adapter, lora_rank=lora_rank, num_bytes=lora_rank * 10**5, identity=b"")


def answer(request: Request) -> Outcome:
    return Completion(
        request=request,
        text="an answer",
        token_ids=(1, 2),
        finish_reason=FinishReason.LENGTH,
        cold_start=ColdStart.NONE,
        timings=Timings(arrival_ms=0.0, first_scheduled_ms=1.0, first_token_ms=2.0, last_token_ms=3.0),
    )


class EchoCrew:
    """See `Crew`.

    Attributes:
        sent: what each replica was sent, in order, of all that were there in its place.
        holding: what it was sent and has not answered.
        most_answers: that it gives when it is asked for news; None for all.
        replaced_by: what comes in the place of who dies; None for nobody, yet.
        poison: ids of requests that kill whoever has them when it is asked for news.
    """

    def __init__(self, descriptions: Sequence[ReplicaDescription]) -> None:
        self.names = [f"replica-{number}" for number in range(len(descriptions))]
        self.descriptions = list(descriptions)
        self.sent: list[list[Request]] = [[] for _ in descriptions]
        self.holding: list[list[Request]] = [[] for _ in descriptions]
        self.most_answers: int | None = None
        self.replaced_by: ReplicaDescription | None = description()
        self.poison: set[str] = set()
        self.num_replacements = 0
        self.num_lost = 0
        self.is_closed = False
        self._events: list[CrewEvent] = []
        self._dead: set[int] = set()
        self._missing: list[int] = []

    def submit(self, replica: int, requests: Sequence[Request]) -> None:
        """See `Crew.submit`."""
        if replica in self._dead:
            self.num_lost += len(requests)
            self.sent[replica] += requests
            return
        self.sent[replica] += requests
        self.holding[replica] += requests

    def wait(self, most_wait_s: float) -> list[CrewEvent]:
        """See `Crew.wait`; waits for nothing."""
        for replica, holding in enumerate(self.holding):
            if any(request.id in self.poison for request in holding):
                self.kill(replica, "of poison")
        events, self._events = self._events, []
        if self.replaced_by is not None:
            self._dead.difference_update(self._missing)
            for replica in self._missing:
                self.descriptions[replica] = self.replaced_by
                events.append(Replaced(replica, self.replaced_by))
            self._missing.clear()
        for replica, holding in enumerate(self.holding):
            if holding and self.most_answers != 0:
                answered = holding[: self.most_answers]
                del holding[: len(answered)]
                news = ReplicaNews(
                    started=[request.id for request in answered],
                    outcomes=[answer(request) for request in answered],
                    num_running=len(holding),
                )
                events.append(Told(replica, news))
        return events

    def tell(self, replica: int, news: ReplicaNews) -> None:
        """A replica has news besides its answers."""
        self._events.append(Told(replica, news))

    def kill(self, replica: int, reason: str = "it was killed") -> None:
        """All that a replica holds is lost."""
        self.num_lost += len(self.holding[replica])
        self.holding[replica].clear()
        self._dead.add(replica)
        self._events.append(Died(replica, reason))

    def replace(self, replica: int) -> None:
        """See `Crew.replace`."""
        self.num_replacements += 1
        self._missing.append(replica)

    def close(self) -> None:
        """See `Crew.close`."""
        self.is_closed = True
