"""One replica of a benchmark on virtual time: it answers a case's requests by the models of a machine, and
what comes of it is read as if it had been measured. Starts nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from caraserve_cli.bench.serving_run import ServingRun
from caraserve_cli.config import EngineConfig
from caraserve_cli.core import AdapterInfo, Completion, FinishReason, Request, Timings
from caraserve_cli.engine.step_sizes import beside_sizes
from caraserve_cli.errors import OptionError
from caraserve_cli.fleet.options import LoraKernel
from caraserve_cli.fleet.synthetic_adapter import SyntheticAdapter
from caraserve_cli.perf.profile import MachineProfile
from caraserve_cli.perf.step_model import StepModel
from caraserve_cli.placement.most_idle import MostIdlePlacement
from caraserve_cli.placement.replica_facts import ReplicaFacts
from caraserve_cli.placement.request_facts import RequestFacts
from caraserve_cli.simulation.fleet import SimulatedFleet
from caraserve_cli.simulation.simulated_request import Answered, SimulatedRequest

# Steps that a GPU's runner has under way at once (`GpuRunner.max_in_flight`, which needs torch).
_STEPS_AHEAD = 2


def check_lora_kernel(where: str, lora_kernel: LoraKernel, profile: MachineProfile, told: str) -> None:
    """Refuse to simulate adapters of bgmv by what was measured of mbgmv, which a profile may have alone.

    Raises:
        OptionError: the profile, which `told` calls by name, has nothing of the kernel.
    """
    if lora_kernel == "bgmv" and profile.padded_kernel is None:
        raise OptionError(
            f"{where}: 'lora_kernel' is 'bgmv', and {told} says nothing of its time; use mbgmv, or a profile "
            "that has it"
        )


def replica_facts(
    profile: MachineProfile, step_model: StepModel, config: EngineConfig, num_cpu_workers: int
) -> ReplicaFacts:
    """A replica of `run` on the machine of a profile, which has a link if it has a GPU."""
    has_gpu = profile.link is not None
    return ReplicaFacts(
        name="replica",
        profile=profile,
        step_model=step_model,
        config=config,
        max_requests=config.max_running,
        num_cpu_workers=num_cpu_workers,
        steps_in_flight=_STEPS_AHEAD if has_gpu else 1,
        beside_tokens=beside_sizes(config.max_batch_tokens)[-1] if has_gpu else 0,
    )


def adapter_infos(adapters: Sequence[SyntheticAdapter], profile: MachineProfile) -> dict[str, AdapterInfo]:
    """What planning needs of made adapters, by name."""
    return {
        adapter.name: AdapterInfo(
            name=adapter.name,
            lora_rank=adapter.lora_rank,
            num_bytes=adapter.num_weights(profile.shape) * profile.dtype_bytes,
            identity=adapter.name.encode(),
        )
        for adapter in adapters
    }


def serve_virtually(
    facts: ReplicaFacts,
    adapters: dict[str, AdapterInfo],
    cold_start: str,
    scheduling: str,
    requests: Sequence[Request],
) -> ServingRun:
    """Answer all requests, each from its arrival on, with no adapter on the device at first.

    Args:
        facts: of the replica.
        adapters: those that requests name.
        cold_start, scheduling: as the options of those names.
        requests: each answered with as many tokens as it may have at most.

    Raises:
        OptionError: a request does not fit the replica.
    """
    answers: list[Answered] = []
    # All requests of a benchmark are given to the replica when they arrive, however many wait there.
    facts = replace(facts, max_requests=max(len(requests), 1))
    fleet = SimulatedFleet([facts], MostIdlePlacement(), cold_start, answers.append, scheduling)
    fleet.run(_simulated(request, adapters) for request in requests)
    of = {request.id: request for request in requests}
    return ServingRun(
        started_ms=0.0,
        completions=[_completion(of[each.request.facts.id], each) for each in answers],
        steps=(),
        undone=None,
    )


def _simulated(request: Request, adapters: dict[str, AdapterInfo]) -> SimulatedRequest:
    info = None if request.adapter is None else adapters[request.adapter]
    num_tokens = request.sampling.max_tokens
    return SimulatedRequest(RequestFacts.of(request, info), info, num_tokens, num_tokens)


def _completion(request: Request, answered: Answered) -> Completion:
    """As an engine would have given it; nobody knows its tokens."""
    return Completion(
        request=request,
        text=None,
        token_ids=(0,) * answered.request.output_tokens,
        finish_reason=FinishReason.LENGTH,
        cold_start=answered.cold_start,
        timings=Timings(
            arrival_ms=request.arrival_ms,
            first_scheduled_ms=answered.first_scheduled_ms,
            first_token_ms=answered.first_token_ms,
            last_token_ms=answered.last_token_ms,
        ),
        num_preemptions=answered.num_preemptions,
    )
