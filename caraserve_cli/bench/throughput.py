"""One throughput benchmark from recipe to result. Knows no terminal."""

from __future__ import annotations

from collections.abc import Sequence

from caraserve_cli.bench.engine_result import CaseRun, OnCaseRun, Peers
from caraserve_cli.bench.engine_runs import run_cases
from caraserve_cli.bench.floor import DeviceSpeed, FloorCase, floor_seconds
from caraserve_cli.bench.peers import OnPeer, measure_vllm_peers
from caraserve_cli.bench.synthetic import request_adapters
from caraserve_cli.bench.throughput_recipe import ThroughputCase, ThroughputRecipe
from caraserve_cli.bench.throughput_result import CaseResult, ThroughputResult, judge_case
from caraserve_cli.fleet.surroundings import Surroundings


def run_throughput(recipe: ThroughputRecipe, on_run: OnCaseRun, on_peer: OnPeer) -> ThroughputResult:
    """Measure the floor, then every case, and then the peers.

    Args:
        on_run: told of vLLM's runs too, each as of a case of its own.
        on_peer: told of transformers + PEFT.

    Raises:
        OptionError: the recipe asks for what this machine does not have.
        InputError: the base cannot be had, or a step does not fit the device's memory.
    """
    done = run_cases(recipe, on_run, on_peer)
    vllm = measure_vllm_peers(recipe, done.surroundings, on_run)
    return ThroughputResult(
        facts=done.facts,
        prompt_tokens=recipe.prompt_tokens,
        output_tokens=recipe.output_tokens,
        cases=tuple(
            _judge(
                case,
                done.runs[case.name],
                done.surroundings[case.options],
                done.speed,
                Peers(peft=done.peers.get(case.name), vllm=vllm.get(case.name)),
            )
            for case in recipe.cases
        ),
    )


def _judge(
    case: ThroughputCase,
    runs: Sequence[CaseRun],
    surroundings: Surroundings,
    speed: DeviceSpeed,
    peers: Peers,
) -> CaseResult:
    config = surroundings.engine_config
    floor_case = FloorCase(
        adapters=request_adapters(case),
        prompt_tokens=case.prompt_tokens,
        output_tokens=case.output_tokens,
        max_running=config.max_running,
    )
    floor_s = floor_seconds(floor_case, surroundings.base.config, surroundings.dtype, speed)
    return judge_case(
        case,
        runs,
        kv_tokens=config.num_kv_tokens,
        adapter_pool_bytes=config.adapter_memory_bytes,
        floor_tokens_per_s=floor_case.num_output_tokens / floor_s,
        peers=peers,
    )
