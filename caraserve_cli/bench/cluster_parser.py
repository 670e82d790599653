"""What a simulated cluster is asked, as its TOML file says it. Every key is honoured or refused by name.

    kind = "cluster"
    policies = ["random", "rank-aware"]
    lora_kernels = ["bgmv", "mbgmv"]          # everything is simulated with each
    requests = 10000                          # of every simulation, the next two included
    settle_requests = 2000                    # the first and the last ones, which are not counted
    seed = 0                                  # optional: of the requests, and of `random`
    rates_per_s = [300, 340]                  # loads, ascending
    further_factor = 1.1                      # optional: then on, each load that many times the one before
    give_up_below = 0.5                       # no load above the SLO's for a policy that attains less
    profile = "baselines/machine.json"        # of `caraserve profile`; or constants, see `cluster_machine`
    [slo]
    factor = 1.5                              # of the time per token without LoRA, at this load
    rate_per_s = 340
    [fleet]
    replicas = 60
    max_running = 64                          # of each replica, as all of these
    max_requests = 128
    kv_memory = "6GB"
    adapter_memory = "3GB"
    cpu_workers = 8
    cold_start = "auto"
    scheduling = "fcfs"                       # optional; or slack, the default of `run`
    disk = { latency_ms = 0.1, gbps = 2 }     # optional: adapters are read from it to host memory
    host_adapter_memory = "64GB"              # beside it: for those that were read; others are read anew
    [workload]
    burstiness = 1                            # optional: of the gaps, 1 is a Poisson process
    adapters = 40000
    zipf_exponent = 1.0
    lora_ranks = [8, 16, 32, 64]              # by turns, in the order of popularity
    modules = ["q_proj", "k_proj", "v_proj"]
    prompt = { median_tokens = 48.1, sigma = 1.304, most_tokens = 2048 }
    output = { median_tokens = 72.6, sigma = 0.8, most_tokens = 512 }
    [[require]]                               # less time per token than another policy at a load
    lora_kernel = "bgmv"
    policy = "rank-aware"
    over = "random"
    rate_per_s = 340
    less_by_at_least = 0.22
    [[require]]                               # at some load it holds an attainment that no other one does
    lora_kernel = "bgmv"
    policy = "rank-aware"
    holds = 0.99
    others = ["random"]
    others_at_most = 0.9

Knows no torch and starts nothing.
"""

from __future__ import annotations

from pathlib import Path

from caraserve_cli.bench.cluster_machine import SimulatedMachine, parse_link, parse_machine
from caraserve_cli.bench.cluster_recipe import (
    CLUSTER,
    ClusterRecipe,
    ClusterRequirement,
    ClusterWorkload,
    FleetKeys,
    HoldsMore,
    LessTime,
    Slo,
)
from caraserve_cli.bench.recipe_table import RecipeTable
from caraserve_cli.coldstart.policy import COLD_START_NAMES
from caraserve_cli.config import EngineConfig, parse_size
from caraserve_cli.engine.by_slack import SCHEDULING_NAMES
from caraserve_cli.engine.scheduling import FirstComeFirstServed
from caraserve_cli.errors import OptionError
from caraserve_cli.placement.catalogue import all_placements
from caraserve_cli.simulation.workload import AdapterMix, Lengths

_KERNELS = ("bgmv", "mbgmv")
# Of a block of the KV cache, the engine's default.
_BLOCK_TOKENS = 16
# None of the adapters of a simulation is on a device before the clock starts.
_COLD_STARTS = tuple(name for name in COLD_START_NAMES if name != "cached")


def parse_cluster(table: RecipeTable, path: Path) -> ClusterRecipe:
    """The simulated cluster in a file that was read.

    Raises:
        InputError: the profile that it names cannot be read.
        OptionError: it has an unknown key, or a wrong value.
        ProfileError: the profile that it names is none of this version.
    """
    table.choice("kind", (CLUSTER,), CLUSTER)
    policies = _subset(table, "policies", tuple(each.name for each in all_placements()))
    kernels = _subset(table, "lora_kernels", _KERNELS)
    machine = parse_machine(table, path, kernels)
    workload = _parse_workload(table.table("workload"))
    num_requests, num_settling = table.count("requests", None), table.count("settle_requests", 0, low=0)
    if num_requests <= 2 * num_settling:
        raise table.wrong("requests", f"more than twice 'settle_requests' ({num_settling})", num_requests)
    slo_table = table.table("slo")
    slo = Slo(factor=slo_table.positive("factor"), rate_per_s=slo_table.positive("rate_per_s"))
    slo_table.close()
    rates = _parse_rates(table)
    further_factor = table.optional_positive("further_factor")
    if further_factor is not None and further_factor <= 1:
        raise table.wrong("further_factor", "above 1", further_factor)
    recipe = ClusterRecipe(
        name=path.stem,
        description=table.text("description"),
        policies=policies,
        lora_kernels=kernels,
        num_requests=num_requests,
        num_settling=num_settling,
        seed=table.count("seed", 0, low=0),
        rates_per_s=rates,
        further_factor=further_factor,
        give_up_below=_share(table, "give_up_below"),
        machine=machine,
        slo=slo,
        fleet=_parse_fleet(table.table("fleet"), machine, workload),
        workload=workload,
        requirements=tuple(
            _parse_requirement(each, policies, kernels, rates) for each in table.tables("require")
        ),
    )
    table.close()
    return recipe


def _parse_rates(table: RecipeTable) -> tuple[float, ...]:
    rates = table.positives("rates_per_s")
    if list(rates) != sorted(set(rates)):
        raise table.wrong("rates_per_s", "a list that ascends", list(rates))
    return rates


def _subset(table: RecipeTable, key: str, known: tuple[str, ...]) -> tuple[str, ...]:
    values = table.texts(key)
    if not values or len(set(values)) < len(values) or not set(values) <= set(known):
        raise table.wrong(key, f"a list without repetition, from {', '.join(known)}", list(values))
    return values


def _share(table: RecipeTable, key: str) -> float:
    value = table.positive(key)
    if value > 1:
        raise table.wrong(key, "a share, from 0 to 1", value)
    return value


def _parse_fleet(table: RecipeTable, machine: SimulatedMachine, workload: ClusterWorkload) -> FleetKeys:
    kv_bytes = _size_bytes(table, "kv_memory")
    max_running = table.count("max_running", None)
    try:
        config = EngineConfig(
            num_kv_blocks=kv_bytes // (machine.kv_token_bytes * _BLOCK_TOKENS),
            adapter_memory_bytes=_size_bytes(table, "adapter_memory"),
            kv_block_tokens=_BLOCK_TOKENS,
            # What a request takes at most, so that none is refused.
            max_context_tokens=workload.prompts.most_tokens + workload.outputs.most_tokens,
            max_running=max_running,
            prefix_caching=False,
        )
    except OptionError as error:
        raise table.wrong("max_running", f"what an engine takes ({error})", max_running) from error
    if config.num_kv_tokens < config.max_context_tokens:
        longest = f"room for the longest request, {config.max_context_tokens} tokens"
        raise table.wrong("kv_memory", longest, f"{config.num_kv_tokens} tokens")
    infos = workload.adapters.infos(machine.profile.shape, machine.profile.dtype_bytes)
    largest = max((info.num_bytes for info in infos), default=0)
    if largest > config.adapter_memory_bytes:
        room = f"room for the largest adapter, {largest} bytes"
        raise table.wrong("adapter_memory", room, config.adapter_memory_bytes)
    cold_start = table.choice("cold_start", _COLD_STARTS, "auto")
    disk_table = table.optional_table("disk")
    if disk_table is None:
        table.refuse("host_adapter_memory", "without 'disk', as all adapters are in host memory")
    fleet = FleetKeys(
        num_replicas=table.count("replicas", None),
        config=config,
        max_requests=table.count("max_requests", None),
        num_cpu_workers=table.count("cpu_workers", 0, low=0),
        cold_start=cold_start,
        scheduling=table.choice("scheduling", SCHEDULING_NAMES, FirstComeFirstServed.name),
        disk=None if disk_table is None else parse_link(disk_table),
        host_adapter_bytes=0 if disk_table is None else _size_bytes(table, "host_adapter_memory"),
    )
    if fleet.num_cpu_workers and machine.profile.cpu_lora is None:
        raise table.wrong(
            "cpu_workers", "0, for the machine's CPU workers were not measured", fleet.num_cpu_workers
        )
    table.close()
    return fleet


def _size_bytes(table: RecipeTable, key: str) -> int:
    text = table.text(key)
    return parse_size(f"[fleet]: '{key}'", text, total_bytes=0)


def _parse_workload(table: RecipeTable) -> ClusterWorkload:
    workload = ClusterWorkload(
        burstiness=table.optional_positive("burstiness") or 1.0,
        adapters=AdapterMix(
            num_adapters=table.count("adapters", None),
            zipf_exponent=table.positive("zipf_exponent"),
            lora_ranks=table.counts("lora_ranks"),
            modules=table.lora_modules("modules"),
        ),
        prompts=_parse_lengths(table.table("prompt")),
        outputs=_parse_lengths(table.table("output")),
    )
    table.close()
    return workload


def _parse_lengths(table: RecipeTable) -> Lengths:
    lengths = Lengths(
        median_tokens=table.positive("median_tokens"),
        sigma=table.optional_positive("sigma") or 0.0,
        most_tokens=table.count("most_tokens", None),
    )
    table.close()
    return lengths


def _parse_requirement(
    table: RecipeTable, policies: tuple[str, ...], kernels: tuple[str, ...], rates: tuple[float, ...]
) -> ClusterRequirement:
    lora_kernel = _one_of(table, "lora_kernel", kernels)
    policy = _one_of(table, "policy", policies)
    required: ClusterRequirement
    if table.optional_text("over") is not None:
        rate_per_s = table.positive("rate_per_s")
        if rate_per_s not in rates:
            raise table.wrong("rate_per_s", "one of 'rates_per_s'", rate_per_s)
        required = LessTime(
            lora_kernel=lora_kernel,
            policy=policy,
            over=_one_of(table, "over", policies),
            rate_per_s=rate_per_s,
            less_by_at_least=_share(table, "less_by_at_least"),
        )
    else:
        required = HoldsMore(
            lora_kernel=lora_kernel,
            policy=policy,
            holds=_share(table, "holds"),
            others=_subset(table, "others", policies),
            others_at_most=_share(table, "others_at_most"),
        )
    table.close()
    return required


def _one_of(table: RecipeTable, key: str, known: tuple[str, ...]) -> str:
    value = table.text(key)
    if value not in known:
        raise table.wrong(key, f"one of the recipe's ({', '.join(known)})", value)
    return value
