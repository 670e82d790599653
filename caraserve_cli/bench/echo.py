"""Replicas that answer at once, for what is around them to be measured: no engine, no model, no device.

They are like servers of Llama-2-7B; adapters are called by numbers, and each has one of a few ranks.
"""

from __future__ import annotations

from collections.abc import Sequence

from caraserve_cli.config import EngineConfig
from caraserve_cli.core import (
    AdapterInfo,
    BaseShape,
    ColdStart,
    Completion,
    FinishReason,
    Request,
    Timings,
)
from caraserve_cli.fleet.crew import CrewEvent, Told
from caraserve_cli.fleet.messages import ReplicaDescription, ReplicaNews

_SHAPE = BaseShape(
    num_layers=32,
    hidden_size=4096,
    num_heads=32,
    num_kv_heads=32,
    head_dim=128,
    intermediate_size=11008,
    vocab_size=32000,
)
_LORA_RANKS = (8, 16, 32, 64)
_KV_BLOCK_TOKENS = 16


def echo_description(*, max_running: int, kv_tokens: int = 10**6) -> ReplicaDescription:
    """A replica of these, as it tells what it is."""
    return ReplicaDescription(
        device="a device",
        memory="a plan",
        config=EngineConfig(
            num_kv_blocks=kv_tokens // _KV_BLOCK_TOKENS,
            kv_block_tokens=_KV_BLOCK_TOKENS,
            adapter_memory_bytes=10**9,
            max_context_tokens=2048,
            max_running=max_running,
        ),
        shape=_SHAPE,
        dtype="bfloat16",
        profile=None,
        is_padded=False,
        is_on_gpu=True,
        num_cpu_workers=0,
        startup_s=0.0,
    )


def numbered_adapter(request: Request) -> AdapterInfo | None:
    """What planning needs of the adapter of a request, whose name is a number; None for the base alone."""
    if request.adapter is None:
        return None
    lora_rank = _LORA_RANKS[int(request.adapter) % len(_LORA_RANKS)]
    return AdapterInfo(name=request.adapter, lora_rank=lora_rank, num_bytes=lora_rank * 10**5, identity=b"")


def echo_answer(request: Request) -> Completion:
    """The same to everybody."""
    return Completion(
        request=request,
        text="an answer",
        token_ids=(1, 2),
        finish_reason=FinishReason.LENGTH,
        cold_start=ColdStart.NONE,
        timings=Timings(arrival_ms=0.0, first_scheduled_ms=1.0, first_token_ms=2.0, last_token_ms=3.0),
    )


def echo_news(requests: Sequence[Request]) -> ReplicaNews:
    """All of them have started and ended."""
    return ReplicaNews(
        outcomes=[echo_answer(request) for request in requests], started=[each.id for each in requests]
    )


class EchoCrew:
    """See `Crew`: in this process, they answer whatever they were sent when they are asked for news, and none
    ever dies."""

    def __init__(self, descriptions: Sequence[ReplicaDescription]) -> None:
        self.names = [f"replica-{number}" for number in range(len(descriptions))]
        self.descriptions = descriptions
        self._unanswered: list[list[Request]] = [[] for _ in descriptions]

    def submit(self, replica: int, requests: Sequence[Request]) -> None:
        """See `Crew.submit`."""
        self._unanswered[replica] += requests

    def wait(self, most_wait_s: float) -> list[CrewEvent]:
        """See `Crew.wait`; waits for nothing."""
        events: list[CrewEvent] = []
        for replica, requests in enumerate(self._unanswered):
            if requests:
                events.append(Told(replica, echo_news(requests)))
                requests.clear()
        return events

    def replace(self, replica: int) -> None:
        """See `Crew.replace`.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"replica {replica} has not died")

    def close(self) -> None:
        """See `Crew.close`."""
