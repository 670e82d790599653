"""Two processes that hold a base together, each with a part of every adapter: real ones, with gloo
between them.

That their greedy answers are those of transformers + PEFT is `test_parity`'s; these are one process's
answers to all else that a request can ask for.
"""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from caraserve_cli.core import Completion, Failure, Request
from caraserve_cli.errors import BaseModelError, LostProcessError, OptionError
from caraserve_cli.fleet import memory_plan, tensor_parallel
from caraserve_cli.fleet.follower_spec import FollowerSpec
from caraserve_cli.fleet.local import LocalReplica, NoEvents
from caraserve_cli.fleet.options import ReplicaOptions
from caraserve_cli.fleet.surroundings import Surroundings
from tests.fleet import test_gpu_way as gpu_way
from tests.fleet.families import write_base
from tests.fleet.test_gpu_way import folder

__all__ = ["folder"]


@pytest.mark.parametrize(
    ("is_gpu_way", "lora_kernel", "cold_start", "adapter_memory"),
    [
        (False, "mbgmv", "on-demand", "200KB"),
        (True, "mbgmv", "stream", "350KB"),
        (True, "bgmv", "on-demand-blocking", "1500KB"),
    ],
    ids=["CPU", "the GPU's way", "padded"],
)
@pytest.mark.parametrize("folder", ["llama3"], indirect=True)
def test_every_answer_is_that_of_one_process(
    folder: Path,
    is_gpu_way: bool,
    lora_kernel: str,
    cold_start: str,
    adapter_memory: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Sampling, penalties, log-probabilities and stop tokens; with the GPU's runner and pool in both
    processes too, a step ahead of its tokens."""
    chance = random.Random(3)
    requests = gpu_way.make_requests(chance, folder)
    expected, _ = gpu_way.answer(folder, requests, random.Random(1), kv_memory="1MB", adapter_memory="10MB")
    monkeypatch.setattr("caraserve_cli.fleet.surroundings.copies_adapters", lambda device: is_gpu_way)
    actual, num_preemptions = gpu_way.answer(
        folder,
        requests,
        chance,
        tensor_parallel=2,
        lora_kernel=lora_kernel,
        cold_start=cold_start,
        kv_memory="30KB",
        adapter_memory=adapter_memory,
        max_running=16,
        max_batch_tokens=64,
        prefill_chunk_tokens=7,
    )
    assert actual == expected
    assert num_preemptions > 0


def base_options(folder: Path, **more: object) -> ReplicaOptions:
    return ReplicaOptions(
        base=str(folder / "base"),
        adapter_roots=(folder / "adapters",),
        device="cpu",
        dtype="float32",
        tensor_parallel=2,
        **more,  # type: ignore[arg-type]
    )


def start(options: ReplicaOptions) -> LocalReplica:
    return LocalReplica(Surroundings.prepare(options), options, lambda: 0.0, NoEvents())


def tokens_of(options: ReplicaOptions, requests: list[Request]) -> dict[str, tuple[int, ...]]:
    replica = start(options)
    replica.submit(requests)
    answers: dict[str, tuple[int, ...]] = {}
    while replica.num_unfinished:
        for outcome in replica.poll():
            assert isinstance(outcome, Completion)
            answers[outcome.request.id] = tuple(outcome.token_ids)
    replica.close()
    return answers


@pytest.mark.parametrize("folder", ["llama3"], indirect=True)
def test_random_weights_are_those_of_one_process_and_vocabularies_need_not_divide(folder: Path) -> None:
    """On three processes that share 6 heads and 160 token ids."""
    family = folder / "three"
    shape = {"num_attention_heads": 6, "num_key_value_heads": 3, "intermediate_size": 96}
    write_base("qwen2", family / "base")
    config = (family / "base" / "config.json").read_text()
    for key, value in shape.items():
        config = _with(config, key, value)
    (family / "base" / "config.json").write_text(config)
    options = ReplicaOptions(
        base=str(family / "base"), weights="random", device="cpu", dtype="float32", seed=5, kv_memory="1MB"
    )
    requests = gpu_way.make_requests(random.Random(0), folder)[:20]
    requests = [dataclasses.replace(request, adapter=None) for request in requests]
    one = tokens_of(options, requests)
    assert len(set(one.values())) > 10
    assert tokens_of(dataclasses.replace(options, tensor_parallel=3), requests) == one


def _with(config: str, key: str, value: int) -> str:
    before, _, after = config.partition(f'"{key}": ')
    return f'{before}"{key}": {value}{after.lstrip("0123456789")}'


@pytest.mark.parametrize("folder", ["llama3"], indirect=True)
def test_what_a_process_cannot_load_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def elsewhere(**fields: object) -> FollowerSpec:
        return FollowerSpec(**{**fields, "folder": folder / "nowhere"})  # type: ignore[arg-type]

    monkeypatch.setattr(tensor_parallel, "FollowerSpec", elsewhere)
    with pytest.raises(LostProcessError, match=r"process 1 of --tensor-parallel 2: .*nowhere: has no model"):
        start(base_options(folder))


@pytest.mark.parametrize("folder", ["llama3"], indirect=True)
def test_an_adapter_that_is_bad_in_one_part_costs_only_its_requests(folder: Path) -> None:
    """The NaN lies in the second process's columns; the first refuses it too."""
    name = gpu_way.config_files(folder)[0].parent.relative_to(folder / "adapters").as_posix()
    file = folder / "adapters" / name / "adapter_model.safetensors"
    bad = folder / "bad" / "nan"
    bad.mkdir(parents=True)
    (bad / "adapter_config.json").write_bytes((file.parent / "adapter_config.json").read_bytes())
    tensors = load_file(file)
    last_b = next(tensor for key, tensor in tensors.items() if "q_proj.lora_B" in key)
    last_b[-1, 0] = torch.nan
    save_file(tensors, bad / "adapter_model.safetensors")
    options = dataclasses.replace(base_options(folder), adapter_roots=(folder / "adapters", folder / "bad"))
    requests = gpu_way.make_requests(random.Random(0), folder)[:6]
    replica = start(options)
    replica.submit([dataclasses.replace(requests[0], adapter="nan"), *requests[1:]])
    outcomes = []
    while replica.num_unfinished:
        outcomes += replica.poll()
    replica.close()
    failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    assert [failure.request.adapter for failure in failures] == ["nan"]
    assert "holds NaN" in failures[0].message
    assert len(outcomes) == len(requests)


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        ({"cold_start": "cpu-assist"}, ("--cold-start", "--tensor-parallel", "cpu-assist")),
        ({"cpu_workers": 1}, ("--cpu-workers", "--tensor-parallel")),
        ({"tensor_parallel": 4}, ("--tensor-parallel", "2 key/value heads", "4 processes", "use 1 or 2")),
        ({"tensor_parallel": 0}, ("--tensor-parallel",)),
    ],
)
@pytest.mark.parametrize("folder", ["llama3"], indirect=True)
def test_what_cannot_be_honoured_is_refused(
    folder: Path, changes: dict[str, object], fragments: tuple[str, ...]
) -> None:
    options = dataclasses.replace(base_options(folder), **changes)  # type: ignore[arg-type]
    with pytest.raises((OptionError, BaseModelError)) as caught:
        Surroundings.prepare(options)
    assert not [fragment for fragment in fragments if fragment not in str(caught.value)], caught.value


@pytest.mark.parametrize("folder", ["llama3"], indirect=True)
def test_each_process_plans_for_its_part(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_plan, "free_host_bytes", lambda: 20 * 10**9)
    one = Surroundings.prepare(dataclasses.replace(base_options(folder), tensor_parallel=1))
    two = Surroundings.prepare(base_options(folder))
    assert two.memory.base_bytes < 0.55 * one.memory.base_bytes
    assert two.memory.total_bytes < 0.6 * one.memory.total_bytes, "they share the host's memory"
    assert two.memory.describe().endswith("in each of 2 processes")
    assert "over 2 processes" in two.device_description
    name = two.library.names[0]
    assert two.host_store.describe(name).num_bytes < one.host_store.describe(name).num_bytes


def test_a_process_without_a_gpu_is_refused() -> None:
    options = ReplicaOptions(base="llama2-7b", weights="random", tensor_parallel=99)
    with pytest.raises(OptionError, match=r"--tensor-parallel: 99 processes need a GPU each, and \d+ can be"):
        tensor_parallel.check_tensor_parallel(options, torch.device("cuda", 0))
