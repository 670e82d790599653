"""A replica in this process: what it is made of, and that everything submitted comes back once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from caraserve_cli.adapters.library import AdapterLibrary
from caraserve_cli.adapters.loader import load_adapter
from caraserve_cli.core import ColdStart, Completion, Failure, Request, SamplingParams
from caraserve_cli.errors import RowError
from caraserve_cli.fleet.local import AdapterSource, LocalReplica, NoEvents, Surroundings
from caraserve_cli.fleet.options import ReplicaOptions
from tests.adapters.bad_adapters import edit_config
from tests.adapters.peft_variants import VARIANTS, write_variant
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
    for cold_start in (ColdStart.ON_DEMAND, ColdStart.RESIDENT):
        answers.append(answer_one(replica, make_request("r", GOOD)))
        assert answers[-1].cold_start is cold_start
    replica.evict_adapters([GOOD, f"bad/{GOOD}"])
    replica.check_integrity()
    answers.append(answer_one(replica, make_request("r", GOOD)))
    assert answers[-1].cold_start is ColdStart.ON_DEMAND
    assert answers[0].token_ids == answers[1].token_ids == answers[2].token_ids


def test_an_adapter_in_use_is_not_evicted(options: ReplicaOptions) -> None:
    replica = start(options)
    replica.submit([make_request("r", GOOD)])
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
