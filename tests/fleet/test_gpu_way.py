"""The GPU's runner on CPU tensors against the CPU's, over all that a greedy parity test leaves out.

Sampling, log-probabilities and penalties beside greedy requests, stop tokens that are found one step late,
requests that come while others run, a cache that preempts, and steps that do not fit the memory.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from caraserve_cli.core import Completion, FinishReason, Request, SamplingParams
from caraserve_cli.engine.gpu_runner import GpuRunner
from caraserve_cli.engine.model_runner import KnownTokens
from caraserve_cli.engine.stream_mark import StreamMark
from caraserve_cli.fleet.local import LocalReplica, NoEvents
from caraserve_cli.fleet.options import ReplicaOptions
from caraserve_cli.fleet.surroundings import Surroundings
from caraserve_cli.step_plan import StepPlan
from tests.adapters.peft_variants import write_variants
from tests.fleet.families import VOCAB_SIZE, write_base

FAMILIES = ("llama3", "mistral")
NUM_REQUESTS = 60

# What an answer is: its tokens, why it ended, and the tokens whose log-probabilities were asked for.
Answer = tuple[tuple[int, ...], FinishReason, tuple[int, ...]]


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    write_variants(folder / "adapters", write_base(request.param, folder / "base"), seed=7)
    return folder


def make_requests(chance: random.Random, folder: Path) -> list[Request]:
    names = [path.parent.relative_to(folder / "adapters").as_posix() for path in config_files(folder)][:10]
    shared = [chance.randrange(3, VOCAB_SIZE) for _ in range(16)]
    requests = []
    for number in range(NUM_REQUESTS):
        own = [chance.randrange(3, VOCAB_SIZE) for _ in range(chance.choice([1, 2, 3, 8, 17, 30, 60]))]
        special = {"logprobs": 2, "repetition_penalty": 1.3, "temperature": 0.9, "top_k": 0}
        key = chance.choice([*special, "top_k", "top_k"])  # top_k 0 is a greedy request
        sampling = SamplingParams(
            max_tokens=chance.choice([1, 2, 5, 12, 20]),
            ignore_eos=chance.random() < 0.5,
            stop_token_ids=tuple(chance.sample(range(VOCAB_SIZE), chance.choice([0, 0, 8, 20]))),
            seed=number,
            **{key: special[key]},  # type: ignore[arg-type]
        )
        prompt = (*shared, *own) if chance.random() < 0.5 else tuple(own)
        adapter = chance.choice([*names, None, None])
        requests.append(
            Request(id=f"r{number}", line=number, prompt_token_ids=prompt, adapter=adapter, sampling=sampling)
        )
    return requests


def config_files(folder: Path) -> list[Path]:
    return sorted((folder / "adapters").rglob("adapter_config.json"))


def answer(
    folder: Path, requests: list[Request], chance: random.Random, **options: str | int | bool
) -> tuple[dict[str, Answer], int]:
    """Every answer to requests that come in bursts, and how often one was preempted."""
    asked = ReplicaOptions(
        base=str(folder / "base"),
        adapter_roots=(folder / "adapters",),
        dtype="float32",
        device="cpu",
        kv_block_tokens=4,
        **options,  # type: ignore[arg-type]
    )
    replica = LocalReplica(Surroundings.prepare(asked), asked, lambda: 0.0, NoEvents())
    waiting, answers, num_preemptions = list(requests), {}, 0
    while waiting or replica.num_unfinished:
        if waiting and chance.random() < 0.5:
            burst = chance.randrange(1, 6)
            replica.submit(waiting[:burst])
            waiting = waiting[burst:]
        for outcome in replica.poll():
            assert isinstance(outcome, Completion), outcome
            assert outcome.request.id not in answers
            tokens = tuple(outcome.token_ids)
            described = tuple(each.token_id for each in outcome.logprobs)
            answers[outcome.request.id] = (tokens, outcome.finish_reason, described)
            num_preemptions += outcome.num_preemptions
        replica.check_integrity()
    replica.close()
    return answers, num_preemptions


@pytest.mark.parametrize(("seed", "lora_kernel"), [(0, "mbgmv"), (1, "mbgmv"), (2, "mbgmv"), (0, "bgmv")])
def test_every_answer_is_the_cpus(
    folder: Path, seed: int, lora_kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(seed)
    requests = make_requests(chance, folder)
    prefix_caching = seed != 1
    expected, _ = answer(
        folder, requests, random.Random(1), kv_memory="1MB", adapter_memory="10MB", prefix_caching=True
    )
    monkeypatch.setattr("caraserve_cli.fleet.surroundings.copies_adapters", lambda device: True)
    actual, num_preemptions = answer(
        folder,
        requests,
        chance,
        lora_kernel=lora_kernel,
        kv_memory="60KB",
        adapter_memory="500KB" if lora_kernel == "mbgmv" else "1500KB",
        max_running=16,
        max_batch_tokens=64,
        prefill_chunk_tokens=(7, 1, 512)[seed],
        prefix_caching=prefix_caching,
    )
    assert actual == expected
    assert num_preemptions > 0
    assert {reason for _, reason, _ in actual.values()} == {FinishReason.STOP, FinishReason.LENGTH}


def test_a_step_that_did_not_fit_is_as_if_it_had_not_been(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some of the steps of more than 8 tokens run out of memory, before or after all has been computed."""
    chance = random.Random(5)
    requests = make_requests(chance, folder)
    expected, _ = answer(folder, requests, random.Random(1), kv_memory="1MB", adapter_memory="10MB")
    monkeypatch.setattr("caraserve_cli.fleet.surroundings.copies_adapters", lambda device: True)
    monkeypatch.setattr(GpuRunner, "_launch", failing(GpuRunner._launch, chance))
    actual, _ = answer(
        folder,
        requests,
        chance,
        kv_memory="60KB",
        adapter_memory="500KB",
        max_running=16,
        max_batch_tokens=64,
    )
    assert actual == expected


def failing(
    launch: Callable[[GpuRunner, StepPlan], object], chance: random.Random
) -> Callable[[GpuRunner, StepPlan], object]:
    def launch_or_fail(runner: GpuRunner, plan: StepPlan) -> object:
        fate = chance.random() if plan.num_tokens > 8 else 1.0
        if fate < 0.1:
            raise torch.OutOfMemoryError("before the step")
        fed = dict(runner._feed_row_of)
        result = launch(runner, plan)
        if fate < 0.2:
            runner._feed_row_of = fed  # it is set when nothing can fail any more
            raise torch.OutOfMemoryError("after the step")
        return result

    return launch_or_fail


def test_nothing_waits_on_the_cpu() -> None:
    mark = StreamMark(torch.device("cpu"))
    mark.wait()
    mark.record()
    mark.wait()
    assert KnownTokens([]).sampled() == []
