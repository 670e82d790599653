"""Small simulated fleets with times known by hand: those of `tests.placement.fleets`, and 1 µs for a token in
the cache where it is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from caraserve_cli.core import AdapterInfo, Bounds
from caraserve_cli.placement.catalogue import placement
from caraserve_cli.placement.policy import Placement
from caraserve_cli.placement.replica_facts import ReplicaFacts
from caraserve_cli.placement.request_facts import RequestFacts
from caraserve_cli.simulation.fleet import SimulatedFleet
from caraserve_cli.simulation.replica import ANY_STEPS
from caraserve_cli.simulation.simulated_request import Answered, SimulatedRequest
from caraserve_cli.simulation.workload import AdapterMix, Lengths, Workload
from tests.perf.h200 import LLAMA2_7B
from tests.placement.fleets import MB, replica, step_model


def simulated(
    name: str,
    arrival_ms: float,
    prompt_tokens: int,
    output_tokens: int,
    adapter: AdapterInfo | None = None,
    bounds: Bounds | None = None,
) -> SimulatedRequest:
    facts = RequestFacts(
        id=name,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        arrival_ms=arrival_ms,
        adapter=adapter.name if adapter else None,
        lora_rank=adapter.lora_rank if adapter else 0,
        adapter_bytes=adapter.num_bytes if adapter else 0,
        bounds=bounds or Bounds(),
    )
    return SimulatedRequest(facts, adapter, output_tokens, 512)


def adapter(name: str, lora_rank: int, num_bytes: int = 256 * MB) -> AdapterInfo:
    return AdapterInfo(name=name, lora_rank=lora_rank, num_bytes=num_bytes, identity=name.encode())


def answers_of(
    requests: Iterable[SimulatedRequest],
    replicas: Sequence[ReplicaFacts],
    policy: str | Placement = "most-idle",
    *,
    cold_start: str = "on-demand",
    scheduling: str = "fcfs",
    most_equal_steps: int = ANY_STEPS,
    check: bool = False,
) -> dict[str, Answered]:
    """By id; every request is answered once. `check` looks at everything after every event."""
    answers: dict[str, Answered] = {}

    def take(answered: Answered) -> None:
        assert answered.request.facts.id not in answers
        answers[answered.request.facts.id] = answered

    chosen = placement(policy) if isinstance(policy, str) else policy
    fleet = SimulatedFleet(replicas, chosen, cold_start, take, scheduling, most_equal_steps)
    if check:
        for _ in fleet.events(requests):
            fleet.check_integrity()
    else:
        fleet.run(requests)
    fleet.check_integrity()
    assert fleet.num_unanswered == 0
    assert not fleet.loads.num_requests.any()
    return answers


def small_fleet(
    number: int, *, is_padded: bool = False, kv_token_ms: float = 0.001, kv_tokens: int = 2400
) -> list[ReplicaFacts]:
    """Few places, blocks and bytes, so that all of them run out."""
    model = replace(step_model(is_padded=is_padded), kv_token_ms=kv_token_ms)
    return [
        replica(
            f"r{index}",
            model,
            max_requests=12,
            max_running=6,
            kv_tokens=kv_tokens,
            pool_bytes=600 * MB,
            num_cpu_workers=2,
        )
        for index in range(number)
    ]


def small_workload(*, rate_per_s: float = 12, num_requests: int = 150, seed: int = 0) -> Workload:
    return Workload(
        rate_per_s=rate_per_s,
        burstiness=1,
        prompts=Lengths(median_tokens=60, sigma=1, most_tokens=700),
        outputs=Lengths(median_tokens=60, sigma=0.8, most_tokens=200),
        adapters=AdapterMix(
            num_adapters=40,
            zipf_exponent=1,
            lora_ranks=(8, 16, 32, 64),
            modules=("q_proj", "k_proj", "v_proj"),
        ),
        bounds=Bounds(tpot_slo_ms=40),
        num_requests=num_requests,
        seed=seed,
    )


def small_requests(**changes: float) -> list[SimulatedRequest]:
    workload = small_workload(**changes)  # type: ignore[arg-type]
    return list(workload.requests(workload.adapters.infos(LLAMA2_7B, 2)))
