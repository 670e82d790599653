"""What steps teach a policy that plans by predictions does not depend on how many of them are passed over."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from caraserve_cli.core import AdapterInfo, Bounds
from caraserve_cli.perf.decode_lora import DecodeLora
from caraserve_cli.perf.least_squares import FitQuality
from caraserve_cli.placement.most_idle import MostIdlePlacement
from caraserve_cli.simulation.fleet import SimulatedFleet
from caraserve_cli.simulation.replica import ANY_STEPS
from caraserve_cli.simulation.simulated_request import Answered, SimulatedRequest
from tests.engine.virtual_replica import make_config, step_model
from tests.perf.test_mixed import TRUE as MIXED
from tests.placement.fleets import PROFILE, replica
from tests.simulation.fleets import simulated

# More than the line of the kernel has, by which plans go at first.
ADDED = DecodeLora((8, 64, 512), (3.0, 6.0, 20.0), 0.05, FitQuality(1, 0, 0))
NUM_BYTES = 10**6


def make_requests(seed: int) -> list[SimulatedRequest]:
    chance = random.Random(seed)
    requests: list[SimulatedRequest] = []
    arrival_ms = 0.0
    for number in range(60):
        arrival_ms += chance.expovariate(1 / 60)
        bounds = chance.choice(
            [
                Bounds(),
                Bounds(tpot_slo_ms=chance.choice([10, 14, 18, 24, 30])),
                Bounds(ttft_slo_ms=100, tpot_slo_ms=chance.choice([12, 16, 20, 35])),
                Bounds(deadline_ms=1500),
            ]
        )
        num_tokens = chance.choice([3, 12, 40, 80])
        request = simulated(
            str(number), arrival_ms, chance.choice([20, 90, 260, 700]), num_tokens, bounds=bounds
        )
        info = AdapterInfo(
            name=f"a{number % 4}", lora_rank=(8, 64)[number % 2], num_bytes=NUM_BYTES, identity=b""
        )
        facts = replace(
            request.facts, adapter=info.name, lora_rank=info.lora_rank, adapter_bytes=info.num_bytes
        )
        requests.append(replace(request, max_output_tokens=num_tokens, adapter=info, facts=facts))
    return requests


def times_of(seed: int, steps_in_flight: int, most_equal_steps: int) -> dict[str, tuple[float, float]]:
    facts = replace(
        replica("r", step_model()),
        config=make_config(max_running=8, num_kv_blocks=600),
        max_requests=64,
        profile=replace(PROFILE, link=None, decode_lora=ADDED, mixed=MIXED),
        steps_in_flight=steps_in_flight,
    )
    answers: list[Answered] = []
    fleet = SimulatedFleet(
        [facts], MostIdlePlacement(), "auto", answers.append, "slack", most_equal_steps=most_equal_steps
    )
    fleet.run(make_requests(seed))
    return {each.request.facts.id: (each.first_token_ms, each.last_token_ms) for each in answers}


@pytest.mark.parametrize("steps_in_flight", [1, 2])
@pytest.mark.parametrize("seed", range(12))
def test_slack_plans_the_same_by_what_was_passed_over(seed: int, steps_in_flight: int) -> None:
    step_by_step = times_of(seed, steps_in_flight, 0)
    passed_over = times_of(seed, steps_in_flight, ANY_STEPS)
    assert passed_over.keys() == step_by_step.keys()
    for name, times_ms in passed_over.items():
        assert times_ms == pytest.approx(step_by_step[name], rel=1e-9)
