"""transformers + PEFT, and vLLM, on the cases that ask for them. Nothing is required of them, and where one
cannot be measured the benchmark goes on without. Knows no terminal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from caraserve_cli.bench.engine_case import EngineCase, EngineRecipe
from caraserve_cli.bench.engine_result import CaseRun, OnCaseRun, Peer, VllmPeer
from caraserve_cli.bench.synthetic import request_adapters
from caraserve_cli.bench.throughput_recipe import ThroughputCase, ThroughputRecipe
from caraserve_cli.errors import CaraServeError
from caraserve_cli.fleet.options import ReplicaOptions
from caraserve_cli.fleet.surroundings import Surroundings

# Decoding steps of transformers + PEFT that are measured: with 32 adapters each takes about a second.
_NUM_STEPS = 8


# Told after each: the case, and what was found.
OnPeer = Callable[[EngineCase, Peer], None]


def measure_peers(
    recipe: EngineRecipe[EngineCase], surroundings: Mapping[ReplicaOptions, Surroundings], on_peer: OnPeer
) -> dict[str, Peer]:
    """Case name -> transformers + PEFT, of the cases that ask for it; nothing else may be on the device."""
    peers: dict[str, Peer] = {}
    for case in recipe.cases:
        if case.peft:
            peers[case.name] = _measure_peft(case, surroundings[case.options])
            on_peer(case, peers[case.name])
    return peers


def _measure_peft(case: EngineCase, surroundings: Surroundings) -> Peer:
    from caraserve_cli.bench.peft_peer import measure_peft, peft_is_present

    if case.num_adapters and not peft_is_present():
        return Peer(run=None, problem="peft is not installed; the extra caraserve[test] has it")
    try:
        run = measure_peft(
            surroundings.base,
            request_adapters(case),
            prompt_tokens=case.prompt_tokens,
            output_tokens=case.output_tokens,
            num_steps=_NUM_STEPS,
            dtype=surroundings.dtype,
            device=surroundings.device,
        )
    except Exception as error:  # of whatever version of the libraries: our own cases have been measured
        return Peer(run=None, problem=_reason(error))
    return Peer(run=run, problem=None)


def measure_vllm_peers(
    recipe: ThroughputRecipe, surroundings: Mapping[ReplicaOptions, Surroundings], on_run: OnCaseRun
) -> dict[str, VllmPeer]:
    """Case name -> vLLM, of the cases that ask for it; nothing else may be on the device by now.

    Args:
        on_run: told of a case's runs, the warm-up left out, when all of them have ended.
    """
    asking = [case for case in recipe.cases if case.vllm]
    if not asking:
        return {}
    from caraserve_cli.bench.vllm_peer import vllm_is_present

    if not vllm_is_present():
        return {case.name: VllmPeer.missing() for case in asking}
    peers: dict[str, VllmPeer] = {}
    for case in asking:
        peers[case.name] = peer = _measure_vllm(case, surroundings[case.options], recipe.repeats)
        if peer.run:
            num_tokens = peer.run.num_output_tokens
            for repeat, seconds in enumerate(peer.run.seconds, 1):
                run = CaseRun(seconds=seconds, num_output_tokens=num_tokens, steps=(), undone=None)
                on_run(f"{case.name}, vLLM", repeat, run)
    return peers


def _measure_vllm(case: ThroughputCase, surroundings: Surroundings, repeats: int) -> VllmPeer:
    from caraserve_cli.bench.vllm_peer import measure_vllm

    try:
        run = measure_vllm(
            surroundings.base,
            request_adapters(case),
            prompt_tokens=case.prompt_tokens,
            output_tokens=case.output_tokens,
            repeats=repeats,
            dtype=surroundings.dtype,
            device=surroundings.device,
        )
    except Exception as error:  # as above
        return VllmPeer(run=None, problem=_reason(error))
    return VllmPeer(run=run, problem=None)


def _reason(error: Exception) -> str:
    """One line; an error of ours is a sentence already."""
    said = str(error) if isinstance(error, CaraServeError) else f"{type(error).__name__}: {error}"
    return said.splitlines()[0]
