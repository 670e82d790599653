"""Cold starts of simulated replicas are decided by the times of the LoRA kernel that they have."""

from __future__ import annotations

from dataclasses import replace

import pytest

from caraserve_cli.core import ColdStart
from caraserve_cli.perf.step_model import StepModel
from tests.perf.h200 import adapter_bytes, h200_profile
from tests.placement.fleets import kernel, replica
from tests.simulation.fleets import adapter, answers_of, simulated


@pytest.mark.parametrize("cold_start", ["auto", "cpu-assist"])
def test_a_padded_replica_counts_with_padded_steps(cold_start: str) -> None:
    """Where the padded kernel makes steps so long that an adapter comes during the one before, no CPU worker
    has to help; where the other kernel runs on the same machine, they do."""
    profile = replace(
        h200_profile().emulated(3.0),
        padded_kernel=kernel(is_padded=True, alpha_ms=10.0),
        unpadded_kernel=kernel(is_padded=False, alpha_ms=0.001),
    )
    requests = [
        simulated("running", 0, 16, 400, adapter("a", 64, adapter_bytes(64))),
        simulated("cold", 1000, 16, 50, adapter("b", 64, adapter_bytes(64))),
    ]
    ways = []
    for is_padded in (True, False):
        model = StepModel.of(profile, is_padded=is_padded, max_batch_tokens=2048)
        facts = replace(replica("r", model, num_cpu_workers=8), profile=profile)
        ways.append(answers_of(requests, [facts], cold_start=cold_start)["cold"].cold_start)
    padded, unpadded = ways
    assert unpadded is ColdStart.CPU_ASSIST
    assert padded is not ColdStart.CPU_ASSIST
