"""What a report says of a run that neither its requests nor its answers tell."""

from __future__ import annotations

from collections.abc import Iterable

from caraserve_cli import __version__
from caraserve_cli.adapters.library import AdapterLibrary
from caraserve_cli.adapters.summary import inspect_adapter
from caraserve_cli.fleet.replica_source import ReplicaSource
from caraserve_cli.job.arrival_plan import ArrivalPlan
from caraserve_cli.job.machine_facts import machine_facts
from caraserve_cli.job.options import RunOptions
from caraserve_cli.report.run_facts import RunFacts


def run_facts(
    options: RunOptions,
    replicas: ReplicaSource,
    plan: ArrivalPlan,
    *,
    startup_s: float,
    duration_s: float,
    resumed: bool,
    interrupted: bool,
    num_late: int,
) -> RunFacts:
    """The facts of one session; see `RunFacts` for the values that are given."""
    return RunFacts(
        caraserve_version=__version__,
        base=replicas.base.name,
        weights=options.replica.weights,
        device=replicas.device_description,
        memory=replicas.memory_description,
        dtype=str(replicas.dtype).removeprefix("torch."),
        requests_source=", ".join(options.sources),
        adapter_folders=[str(root) for root in options.replica.adapter_roots],
        num_adapters_found=len(replicas.library.names),
        startup_s=startup_s,
        duration_s=duration_s,
        resumed=resumed,
        interrupted=interrupted,
        num_late=num_late,
        arrival=plan.definition,
        arrival_process=plan.process,
        options=options.as_json(),
        emulated_link_gbps=options.replica.emulate_link_gbps,
        fleet=None if replicas.account is None else replicas.account.as_json(),
        machine=machine_facts(),
    )


def find_lora_ranks(library: AdapterLibrary, adapters: Iterable[str | None]) -> dict[str, int]:
    """The rank of each of `adapters` that is in the library: the largest of its modules."""
    found = [name for name in adapters if name is not None and name in library]
    ranks = {name: inspect_adapter(name, library.path(name)).lora_ranks for name in found}
    return {name: lora_ranks[1] for name, lora_ranks in ranks.items() if lora_ranks is not None}
