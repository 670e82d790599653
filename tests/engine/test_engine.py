"""The engine on a tiny real base: what ends an answer, what it reports, and what it refuses."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from caraserve_cli.core import Completion, Failure, FinishReason, Request, SamplingParams
from caraserve_cli.fleet.local import LocalReplica, NoEvents
from caraserve_cli.fleet.options import ReplicaOptions
from caraserve_cli.fleet.replica import Outcome
from caraserve_cli.fleet.surroundings import Surroundings
from tests.adapters.peft_variants import VARIANTS, write_variant
from tests.cli.command import SAMPLE
from tests.fleet.families import VOCAB_SIZE, write_base


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engine")
    load = write_base("llama3", folder / "base")
    for number in (0, 3):
        write_variant(folder / "adapters", VARIANTS[number], load, seed=number)
    return folder


def start(folder: Path, **options: object) -> LocalReplica:
    replica_options = ReplicaOptions(
        base=str(folder / "base"),
        adapter_roots=(folder / "adapters",),
        device="cpu",
        dtype="float32",
        **options,  # type: ignore[arg-type]
    )
    return LocalReplica(Surroundings.prepare(replica_options), replica_options, lambda: 0.0, NoEvents())


def finish(replica: LocalReplica, requests: Sequence[Request]) -> dict[str, Outcome]:
    replica.submit(requests)
    outcomes: dict[str, Outcome] = {}
    while replica.num_unfinished:
        for outcome in replica.poll():
            assert outcome.request.id not in outcomes
            outcomes[outcome.request.id] = outcome
        replica.check_integrity()
    return outcomes


def make_request(name: str = "r", adapter: str | None = None, **sampling: object) -> Request:
    return Request(
        id=name,
        line=1,
        prompt_token_ids=(5, 9, 17, 40, 3),
        adapter=adapter,
        sampling=SamplingParams(**{"max_tokens": 12, "ignore_eos": True, **sampling}),  # type: ignore[arg-type]
    )


def complete(replica: LocalReplica, request: Request) -> Completion:
    outcome = finish(replica, [request])[request.id]
    assert isinstance(outcome, Completion), outcome
    return outcome


def refused(replica: LocalReplica, request: Request) -> Failure:
    outcome = finish(replica, [request])[request.id]
    assert isinstance(outcome, Failure), outcome
    return outcome


def test_a_stop_token_ends_the_answer_and_is_counted(folder: Path) -> None:
    replica = start(folder)
    whole = complete(replica, make_request())
    assert whole.finish_reason is FinishReason.LENGTH
    stop = whole.token_ids[4]
    first = whole.token_ids.index(stop)
    stopped = complete(replica, make_request(stop_token_ids=(stop,)))
    assert stopped.finish_reason is FinishReason.STOP
    assert stopped.token_ids == whole.token_ids[: first + 1]


def test_every_eos_of_the_generation_config_ends_an_answer(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "job")
    whole = complete(start(folder), make_request())
    ends = whole.token_ids[3]
    (tmp_path / "job" / "base" / "generation_config.json").write_text(f'{{"eos_token_id": [7, {ends}]}}')
    replica = start(tmp_path / "job")
    ended = complete(replica, make_request(ignore_eos=False))
    assert ended.token_ids == whole.token_ids[: whole.token_ids.index(ends) + 1]
    assert ended.finish_reason is FinishReason.STOP
    assert complete(replica, make_request()).token_ids == whole.token_ids


def test_the_context_ends_an_answer(folder: Path) -> None:
    ended = complete(start(folder), make_request(max_tokens=100_000))
    assert len(ended.token_ids) == 128 - 5
    assert ended.finish_reason is FinishReason.LENGTH


def test_logprobs_are_the_models(folder: Path) -> None:
    answer = complete(start(folder), make_request(logprobs=4, max_tokens=5))
    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    request = answer.request
    with torch.inference_mode():
        logits = model(torch.tensor([[*request.prompt_token_ids, *answer.token_ids]])).logits[0]
    expected = logits.log_softmax(-1)[len(request.prompt_token_ids) - 1 :]
    assert len(answer.logprobs) == 5
    for position, told in enumerate(answer.logprobs):
        assert told.token_id == answer.token_ids[position]
        assert told.logprob == pytest.approx(float(expected[position, told.token_id]), abs=1e-4)
        assert [token for token, _ in told.top] == expected[position].topk(4).indices.tolist()


def test_a_seed_draws_the_same_in_any_company(folder: Path) -> None:
    drawn = {"temperature": 1.5, "top_p": 0.9}
    alone = complete(start(folder), make_request("drawn", seed=11, **drawn))
    company = [make_request(f"c{i}", VARIANTS[3].name if i % 2 else None, seed=i, **drawn) for i in range(9)]
    outcomes = finish(start(folder), [*company, make_request("drawn", seed=11, **drawn)])
    among = outcomes["drawn"]
    assert isinstance(among, Completion)
    assert among.token_ids == alone.token_ids
    others = {outcome.token_ids for outcome in outcomes.values() if isinstance(outcome, Completion)}
    assert len(others) > 5, "different seeds draw differently"


def test_a_repeated_prompt_is_found_in_the_cache(folder: Path) -> None:
    replica = start(folder, kv_block_tokens=4)
    first, again = complete(replica, make_request("a")), complete(replica, make_request("b"))
    assert (first.num_cached_tokens, again.num_cached_tokens) == (0, 4)
    assert first.token_ids == again.token_ids
    other = complete(replica, make_request("c", VARIANTS[0].name))
    assert other.num_cached_tokens == 0, "another adapter has other keys and values"
    assert complete(replica, make_request("d", VARIANTS[0].name)).num_cached_tokens == 4


def test_what_can_never_fit_is_refused_alone(folder: Path) -> None:
    replica = start(folder, kv_memory="40KB")
    outcomes = finish(replica, [make_request("long", max_tokens=120), make_request("short", max_tokens=2)])
    assert isinstance(outcomes["short"], Completion)
    long = outcomes["long"]
    assert isinstance(long, Failure)
    assert long.code == "kv_capacity"
    assert "--kv-memory" in long.message
    failure = refused(start(folder, adapter_memory="1KB"), make_request("r", VARIANTS[0].name))
    assert failure.code == "adapter_too_large"
    assert "--adapter-memory" in failure.message


def test_an_adapter_whose_files_vanish_fails_alone(folder: Path, tmp_path: Path) -> None:
    """Seen when submitted, dropped by the host store, gone when it is needed on the device."""
    shutil.copytree(folder, tmp_path / "job")
    replica = start(tmp_path / "job", host_adapter_memory="1KB")
    names = [VARIANTS[0].name, VARIANTS[3].name]
    replica.submit([make_request(name, name) for name in names] + [make_request("base")])
    shutil.rmtree(tmp_path / "job" / "adapters" / names[0])
    outcomes = finish(replica, [])
    assert isinstance(outcomes["base"], Completion)
    assert isinstance(outcomes[names[1]], Completion)
    gone = outcomes[names[0]]
    assert isinstance(gone, Failure)
    assert gone.code == "adapter_refused"
    assert names[0] in gone.message


def test_stop_strings_end_the_text() -> None:
    options = ReplicaOptions(base=str(SAMPLE / "base"), adapter_roots=(SAMPLE / "adapters",), dtype="float32")
    surroundings = Surroundings.prepare(options)
    assert surroundings.tokenizer is not None
    (prompt,) = surroundings.tokenizer.encode_batch(["Input: lantern\nOutput: "])
    replica = LocalReplica(surroundings, options, lambda: 0.0, NoEvents())
    request = Request(
        id="r",
        line=1,
        prompt_token_ids=tuple(prompt),
        adapter="reverse",
        sampling=SamplingParams(max_tokens=20, stop=("tna",)),
    )
    answer = complete(replica, request)
    assert answer.text == "nre"
    assert answer.finish_reason is FinishReason.STOP
    assert len(answer.token_ids) == 6


def test_the_vocabulary_is_the_bases(folder: Path) -> None:
    assert (
        Surroundings.prepare(
            ReplicaOptions(base=str(folder / "base"), device="cpu")
        ).base.config.shape.vocab_size
        == VOCAB_SIZE
    )
