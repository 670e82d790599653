"""What a simulated cluster is asked; `cluster_parser` has the words. Knows no torch and starts nothing."""

from __future__ import annotations

from dataclasses import dataclass

from caraserve_cli.bench.cluster_machine import SimulatedMachine
from caraserve_cli.config import EngineConfig
from caraserve_cli.perf.link import LinkModel
from caraserve_cli.placement.replica_facts import ReplicaFacts
from caraserve_cli.simulation.workload import AdapterMix, Lengths

CLUSTER = "cluster"


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """The bound on the time per token: `factor` times what it is without LoRA at `rate_per_s`."""

    factor: float
    rate_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetKeys:
    """The fleet's replicas; see `cluster_parser`."""

    num_replicas: int
    config: EngineConfig
    max_requests: int
    num_cpu_workers: int
    cold_start: str
    scheduling: str
    disk: LinkModel | None
    host_adapter_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterWorkload:
    """What is asked of the fleet at every load."""

    burstiness: float
    adapters: AdapterMix
    prompts: Lengths
    outputs: Lengths


@dataclass(frozen=True, slots=True, kw_only=True)
class LessTime:
    """The mean time per token of `policy` is less than that of `over` by this share of it, at a load."""

    lora_kernel: str
    policy: str
    over: str
    rate_per_s: float
    less_by_at_least: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldsMore:
    """At some load `policy` attains at least `holds`, and none of `others` more than `others_at_most`."""

    lora_kernel: str
    policy: str
    holds: float
    others: tuple[str, ...]
    others_at_most: float


ClusterRequirement = LessTime | HoldsMore


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterRecipe:
    """One simulated cluster, under several policies, kernels and loads.

    Attributes:
        further_factor: None where no load is simulated beyond `rates_per_s`.
    """

    name: str
    description: str
    policies: tuple[str, ...]
    lora_kernels: tuple[str, ...]
    num_requests: int
    num_settling: int
    seed: int
    rates_per_s: tuple[float, ...]
    further_factor: float | None
    give_up_below: float
    machine: SimulatedMachine
    slo: Slo
    fleet: FleetKeys
    workload: ClusterWorkload
    requirements: tuple[ClusterRequirement, ...]

    def replicas(self, lora_kernel: str) -> list[ReplicaFacts]:
        """The fleet with one of the kernels."""
        step_model = self.machine.step_model(
            is_padded=lora_kernel == "bgmv", max_batch_tokens=self.fleet.config.max_batch_tokens
        )
        return [
            ReplicaFacts(
                name=f"replica-{index}",
                profile=self.machine.profile,
                step_model=step_model,
                config=self.fleet.config,
                max_requests=self.fleet.max_requests,
                num_cpu_workers=self.fleet.num_cpu_workers,
                disk=self.fleet.disk,
                host_adapter_bytes=self.fleet.host_adapter_bytes,
            )
            for index in range(self.fleet.num_replicas)
        ]
