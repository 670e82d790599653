"""What a placement knows of a replica that never changes. Data and nothing but data."""

from __future__ import annotations

from dataclasses import dataclass

from caraserve_cli.config import EngineConfig
from caraserve_cli.perf.link import LinkModel
from caraserve_cli.perf.profile import MachineProfile
from caraserve_cli.perf.step_model import StepModel


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaFacts:
    """One replica; each may be another machine with another kernel.

    Attributes:
        name: no other replica of the fleet has it. Equals are told apart by it, not by their order.
        profile: of its machine.
        step_model: of its steps.
        config: of its engine.
        max_requests: that it takes, those that run and those that wait there.
        num_cpu_workers: that assist cold starts.
        steps_in_flight: plans that are under way at once: 2 where a GPU's runner plans one step ahead.
        beside_tokens: of a step that is computed beside the others; 0 where nothing is.
        disk: from which adapters are read to host memory; None where all are there from the start.
        host_adapter_bytes: of host memory for adapters that were read.
    """

    name: str
    profile: MachineProfile
    step_model: StepModel
    config: EngineConfig
    max_requests: int
    num_cpu_workers: int = 0
    steps_in_flight: int = 1
    beside_tokens: int = 0
    disk: LinkModel | None = None
    host_adapter_bytes: int = 0
