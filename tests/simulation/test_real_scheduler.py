"""The simulator gives to the tick what the engine's own scheduler decides, driven step by step without it."""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle

import pytest

from caraserve_cli.core import Bounds
from caraserve_cli.engine.by_slack import make_scheduling_policy
from caraserve_cli.perf.step_predictor import StepPredictor
from tests.engine.virtual_replica import VirtualReplica, make_config, make_sequence, step_model
from tests.placement.fleets import PROFILE, replica
from tests.simulation.fleets import answers_of, simulated

# By turns: without a bound, urgent, with a TPOT bound that prompts break, and with all.
BOUNDS = (
    Bounds(),
    Bounds(ttft_slo_ms=40),
    Bounds(tpot_slo_ms=9),
    Bounds(deadline_ms=900, ttft_slo_ms=200, tpot_slo_ms=12),
)
PROMPTS, OUTPUTS = (20, 700, 90, 1500, 260), (12, 40, 3, 25)


@pytest.mark.parametrize("scheduling", ["slack", "fcfs"])
@pytest.mark.parametrize("gap_ms", [3.0, 17.0])
def test_the_same_times_as_the_scheduler_step_by_step(scheduling: str, gap_ms: float) -> None:
    config = make_config(max_running=8, num_kv_blocks=600)
    rows = [
        (f"{number}", number * gap_ms, prompt, output, bounds)
        for number, prompt, output, bounds in zip(
            range(40), cycle(PROMPTS), cycle(OUTPUTS), cycle(BOUNDS), strict=False
        )
    ]
    engine = VirtualReplica(
        lambda config: make_scheduling_policy(scheduling, config, StepPredictor(step_model())), config
    )
    sequences = [
        make_sequence(name, prompt, output, bounds, arrival_ms=arrival_ms)
        for name, arrival_ms, prompt, output, bounds in rows
    ]
    engine.run(sequences)

    facts = replace(
        replica("r", step_model()), config=config, max_requests=64, profile=replace(PROFILE, link=None)
    )
    requests = [
        replace(simulated(name, arrival_ms, prompt, output, bounds=bounds), max_output_tokens=output)
        for name, arrival_ms, prompt, output, bounds in rows
    ]
    answers = answers_of(requests, [facts], scheduling=scheduling)
    for sequence, _ in sequences:
        answered, timings = answers[sequence.request.id], sequence.timings
        assert answered.first_token_ms == pytest.approx(timings.first_token_ms, rel=1e-9)
        assert answered.last_token_ms == pytest.approx(timings.last_token_ms, rel=1e-9)
        assert answered.num_preemptions == sequence.num_preemptions
