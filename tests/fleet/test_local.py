"""A replica in this process: what it is made of, and that everything submitted comes back once."""

from __future__ import annotations

import dataclasses
import os
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from caraserve_cli.adapters.library import AdapterLibrary
from caraserve_cli.adapters.loader import load_adapter
from caraserve_cli.adapters.packing import PaddedForm, UnpaddedForm
from caraserve_cli.coldstart import worker_pool
from caraserve_cli.core import BaseShape, ColdStart, Completion, Failure, Request, SamplingParams
from caraserve_cli.errors import BaseModelError, InputError, OptionError, RowError, RowErrorCode
from caraserve_cli.fleet import local
from caraserve_cli.fleet.cold_start import choose_cores
from caraserve_cli.fleet.local import LocalReplica, NoEvents
from caraserve_cli.fleet.options import ReplicaOptions
from caraserve_cli.fleet.surroundings import AdapterSource, Surroundings
from tests.adapters.bad_adapters import edit_config
from tests.adapters.peft_variants import VARIANTS, Variant, write_variant
from tests.fleet.families import write_base

GOOD = VARIANTS[0].name


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> ReplicaOptions:
    """A base, a good adapter, and `bad/…`, the same one with a field that is refused."""
    folder = tmp_path_factory.mktemp("local")
    load = write_base("llama2", folder / "base")
    write_variant(folder / "adapters", VARIANTS[0], load, seed=1)
    write_variant(folder / "adapters" / "bad", VARIANTS[0], load, seed=1)
    edit_config(folder / "adapters" / "bad" / GOOD, {"use_dora": True})
    return ReplicaOptions(
        base=str(folder / "base"), adapter_roots=(folder / "adapters",), device="cpu", dtype="float32"
    )


def start(options: ReplicaOptions) -> LocalReplica:
    return LocalReplica(Surroundings.prepare(options), options, lambda: 0.0, NoEvents())


def make_request(name: str, adapter: str | None = None, num_prompt: int = 3, max_tokens: int = 3) -> Request:
    sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    prompt = tuple(range(5, 5 + num_prompt))
    return Request(id=name, line=1, prompt_token_ids=prompt, adapter=adapter, sampling=sampling)


def test_everything_submitted_comes_back_once(options: ReplicaOptions) -> None:
    replica = start(options)
    replica.submit(
        [make_request("base"), make_request("refused", f"bad/{GOOD}"), make_request("too long", None, 128)]
    )
    replica.submit([make_request("good", GOOD)])
    assert replica.num_unfinished == 4, "refused ones are not finished before they are told of"
    outcomes = []
    while replica.num_unfinished:
        outcomes += replica.poll()
        assert replica.num_running <= 2
        replica.check_integrity()
    assert sorted(outcome.request.id for outcome in outcomes) == ["base", "good", "refused", "too long"]
    failures = {o.request.id: o.code for o in outcomes if isinstance(o, Failure)}
    assert failures == {"refused": "adapter_refused", "too long": "prompt_too_long"}
    assert replica.poll() == []


def test_what_can_be_checked_without_weights_is_what_fails_with_them(options: ReplicaOptions) -> None:
    surroundings = Surroundings.prepare(options)
    surroundings.check(make_request("good", GOOD))
    for request in (make_request("refused", f"bad/{GOOD}"), make_request("too long", None, 128)):
        with pytest.raises(RowError) as caught:
            surroundings.check(request)
        replica = start(options)
        replica.submit([request])
        (failure,) = replica.poll()
        assert isinstance(failure, Failure)
        assert (failure.code, failure.message) == (caught.value.code, caught.value.message)


def test_surroundings_are_what_the_options_name(options: ReplicaOptions) -> None:
    surroundings = Surroundings.prepare(options)
    assert surroundings.library.names == (f"bad/{GOOD}", GOOD)
    assert surroundings.tokenizer is None
    assert (surroundings.dtype, surroundings.device.type) == (torch.float32, "cpu")
    assert surroundings.engine_config.max_context_tokens == 128
    info = surroundings.describe_adapter(make_request("good", GOOD))
    assert info is not None
    assert (info.name, info.lora_rank) == (GOOD, 4)
    assert surroundings.describe_adapter(make_request("base")) is None


def test_random_weights_need_no_files_and_follow_the_seed(options: ReplicaOptions, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((Path(options.base) / "config.json").read_bytes())
    random = dataclasses.replace(options, base=str(tmp_path), adapter_roots=(), weights="random")
    answers = []
    for seed in (1, 1, 2):
        replica = start(dataclasses.replace(random, seed=seed))
        replica.submit([make_request("r", max_tokens=20)])
        while not (outcomes := replica.poll()):
            pass
        assert isinstance(outcomes[0], Completion)
        answers.append(outcomes[0].token_ids)
    assert answers[0] == answers[1] != answers[2]


def answer_one(replica: LocalReplica, request: Request) -> Completion:
    replica.submit([request])
    while not (outcomes := replica.poll()):
        replica.check_integrity()
    (completion,) = outcomes
    assert isinstance(completion, Completion)
    return completion


def test_an_evicted_adapter_is_cold_again(options: ReplicaOptions) -> None:
    replica = start(options)
    answers = []
    for cold_start in (ColdStart.STREAM, ColdStart.RESIDENT):
        answers.append(answer_one(replica, make_request("r", GOOD)))
        assert answers[-1].cold_start is cold_start
    replica.evict_adapters([GOOD, f"bad/{GOOD}"])
    replica.check_integrity()
    answers.append(answer_one(replica, make_request("r", GOOD)))
    assert answers[-1].cold_start is ColdStart.STREAM
    assert answers[0].token_ids == answers[1].token_ids == answers[2].token_ids


def test_an_adapter_in_use_is_not_evicted(options: ReplicaOptions) -> None:
    replica = start(options)
    replica.submit([make_request("r", GOOD)])
    while not replica.num_running:  # its adapter is being read
        assert replica.poll() == []
    with pytest.raises(ValueError, match="in use"):
        replica.evict_adapters([GOOD])
    while not replica.poll():
        replica.check_integrity()


def test_adapters_of_another_source(options: ReplicaOptions) -> None:
    """Under a name and in a place that no folder of the options has."""
    library = AdapterLibrary({"renamed": options.adapter_roots[0] / GOOD})
    surroundings = Surroundings.prepare(options, AdapterSource(library, load_adapter))
    assert surroundings.library.names == ("renamed",)
    replica = LocalReplica(surroundings, options, lambda: 0.0, NoEvents())
    answer = answer_one(replica, make_request("r", "renamed"))
    assert answer.token_ids == answer_one(start(options), make_request("r", GOOD)).token_ids


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, adapters are copied to a pool."""
    monkeypatch.setattr("caraserve_cli.fleet.surroundings.copies_adapters", lambda device: True)


def form_of(surroundings: Surroundings) -> object:
    assert surroundings.host_store.packer is not None
    return surroundings.host_store.packer.form


def test_nothing_is_padded_on_the_cpu(options: ReplicaOptions) -> None:
    assert Surroundings.prepare(options).host_store.packer is None
    with pytest.raises(
        OptionError, match=r"--lora-kernel: 'bgmv' .* on the CPU; leave it out, or use --device"
    ):
        Surroundings.prepare(dataclasses.replace(options, lora_kernel="bgmv"))


@pytest.mark.usefixtures("copies")
def test_the_form_is_what_the_lora_kernel_says(options: ReplicaOptions) -> None:
    assert form_of(Surroundings.prepare(options)) == UnpaddedForm()
    bgmv = dataclasses.replace(options, lora_kernel="bgmv")
    assert form_of(Surroundings.prepare(bgmv)) == PaddedForm(4), "of the good adapter"
    without = dataclasses.replace(bgmv, adapter_roots=())
    assert form_of(Surroundings.prepare(without)) == PaddedForm(1)


@pytest.mark.usefixtures("copies")
def test_a_source_is_asked_for_its_largest_rank_only_to_pad(options: ReplicaOptions) -> None:
    asked = []

    def find(library: AdapterLibrary, shape: BaseShape, limit: int) -> int:
        asked.append((library.names, shape.num_layers, limit))
        return 77

    source = AdapterSource(AdapterLibrary({"a": Path("nowhere")}), find_largest_rank=find)
    Surroundings.prepare(options, source)
    assert asked == []
    padded = Surroundings.prepare(dataclasses.replace(options, lora_kernel="bgmv"), source)
    assert form_of(padded) == PaddedForm(77)
    assert asked == [(("a",), 2, 512)]


@pytest.mark.usefixtures("copies")
def test_whether_an_adapter_fits_is_asked_of_its_padded_size(options: ReplicaOptions, tmp_path: Path) -> None:
    """And the dry run and the engine say the same."""
    load = partial(AutoModelForCausalLM.from_pretrained, options.base)
    for name, lora_rank in (("small", 4), ("large", 60)):
        config = {"r": lora_rank, "target_modules": ["q_proj"]}
        write_variant(tmp_path, Variant(name, config), load, seed=1)
    asked = dataclasses.replace(options, adapter_roots=(tmp_path,), adapter_memory="40KB")
    Surroundings.prepare(asked).check(make_request("r", "small"))
    padded = dataclasses.replace(asked, lora_kernel="bgmv")
    surroundings = Surroundings.prepare(padded)
    num_bytes = 2 * 60 * (48 + 48) * 4  # 60 rows of A and B in two layers, in pieces of whole kilobytes
    info = surroundings.describe_adapter(make_request("r", "small"))
    assert info is not None
    assert (info.lora_rank, info.num_bytes) == (4, num_bytes)
    with pytest.raises(RowError) as caught:
        surroundings.check(make_request("r", "small"))
    assert caught.value.code is RowErrorCode.ADAPTER_TOO_LARGE
    replica = LocalReplica(surroundings, padded, lambda: 0.0, NoEvents())
    replica.submit([make_request("r", "small")])
    (failure,) = replica.poll()
    assert isinstance(failure, Failure)
    assert failure.message == caught.value.message


@pytest.mark.usefixtures("copies")
def test_a_host_store_of_the_other_form_is_not_taken(options: ReplicaOptions) -> None:
    """A benchmark shares stores among replicas."""
    padded = dataclasses.replace(options, lora_kernel="bgmv")
    with pytest.raises(ValueError, match="packs for mbgmv, not for bgmv"):
        LocalReplica(Surroundings.prepare(options), padded, lambda: 0.0, NoEvents())


def memory_files() -> list[str]:
    """Of this process, the memory that it shares with CPU workers."""
    open_files = (os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_open(fd))
    return sorted(path for path in open_files if "caraserve-exchange" in path or "caraserve-tickets" in path)


def _is_open(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


@pytest.mark.parametrize("what", ["load_decoder", "Engine"])
def test_a_replica_that_cannot_be_made_leaves_nothing(
    what: str, options: ReplicaOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise BaseModelError("a shard is missing")

    monkeypatch.setattr(local, what, fail)
    before = memory_files()
    with pytest.raises(BaseModelError, match="a shard is missing"):
        start(dataclasses.replace(options, cold_start="cpu-assist", cpu_workers=1))
    assert memory_files() == before


def test_workers_that_do_not_start_leave_nothing(
    options: ReplicaOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_pool, "_START_S", 0.0)
    before = memory_files()
    with pytest.raises(InputError, match="no CPU worker started"):
        start(dataclasses.replace(options, cold_start="cpu-assist", cpu_workers=1))
    assert memory_files() == before


def test_no_more_workers_than_can_work_together(
    options: ReplicaOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(128)))
    choose_cores(dataclasses.replace(options, cpu_workers=64))
    with pytest.raises(OptionError, match="--cpu-workers: 65 are asked for; use at most 64"):
        choose_cores(dataclasses.replace(options, cpu_workers=65))
