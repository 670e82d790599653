"""The oracle: token for token what transformers + PEFT generate, greedily, in float32.

Over five families × every adapter variant, more than 200 requests in one mixed batch, with a cache that is
too small for them, any chunk size, with and without prefix caching.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections import Counter, deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest

from caraserve_cli.coldstart import assistant
from caraserve_cli.coldstart.arrival import Arrival, Decision
from caraserve_cli.coldstart.break_even import BreakEven
from caraserve_cli.coldstart.policy import Auto
from caraserve_cli.core import ColdStart, Completion, Request, SamplingParams
from caraserve_cli.engine.tokens_under_way import TokensUnderWay
from caraserve_cli.events import StepRecord
from caraserve_cli.fleet.local import LocalReplica
from caraserve_cli.fleet.options import DeviceName, ReplicaOptions
from caraserve_cli.fleet.surroundings import Surroundings
from tests.adapters.peft_variants import write_variants
from tests.fleet.families import FAMILIES, VOCAB_SIZE, peft_answers, write_base
from tests.perf.h200 import h200_profile

REQUESTS_PER_ADAPTER = 8
MAX_TOKENS = 12
PROMPT_LENGTHS = (3, 17, 30)


class Steps:
    """An event sink that keeps everything."""

    def __init__(self) -> None:
        self.records: list[StepRecord] = []

    def on_step(self, record: StepRecord) -> None:
        self.records.append(record)


@dataclass(frozen=True)
class Oracle:
    """A base and adapters on disk, requests over all of them, and PEFT's answers."""

    base: Path
    adapters: Path
    requests: list[Request]
    answers: dict[str, list[int]]


def make_requests(names: list[str | None]) -> list[Request]:
    """Requests over all adapters; two in three begin with the same 16 tokens, so that prefixes are shared."""
    chance = random.Random(0)
    shared = [chance.randrange(3, VOCAB_SIZE) for _ in range(max(PROMPT_LENGTHS))]
    requests = []
    for number in range(REQUESTS_PER_ADAPTER * len(names)):
        length = PROMPT_LENGTHS[(number // len(names)) % len(PROMPT_LENGTHS)]
        own = [chance.randrange(3, VOCAB_SIZE) for _ in range(length)]
        prompt = shared[: min(16, length - 1)] + own[min(16, length - 1) :] if number % 3 else own
        requests.append(
            Request(
                id=f"r{number}",
                line=number + 1,
                prompt_token_ids=tuple(prompt),
                adapter=names[number % len(names)],
                sampling=SamplingParams(max_tokens=MAX_TOKENS, ignore_eos=True),
            )
        )
    return requests


@pytest.fixture(scope="module", params=FAMILIES)
def oracle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    folder = tmp_path_factory.mktemp(request.param)
    load = write_base(request.param, folder / "base")
    names = write_variants(folder / "adapters", load, seed=7)
    requests = make_requests([*names, None, None])
    assert len(requests) >= 200
    answers = peft_answers(load(), folder / "adapters", names, requests)
    return Oracle(folder / "base", folder / "adapters", requests, answers)


def answer(
    oracle: Oracle,
    requests: list[Request],
    device: DeviceName = "cpu",
    *,
    most_at_once: int | None = None,
    are_read: bool = False,
    **options: object,
) -> tuple[dict[str, Completion], Steps]:
    """Every answer of a replica with these options, checking its books after every step; it is asked all at
    once, or has no more than so many to answer. Where the adapters `are_read` before it is asked, what its
    steps are depends on no thread that reads."""
    replica_options = ReplicaOptions(
        base=str(oracle.base), adapter_roots=(oracle.adapters,), dtype="float32", device=device, **options
    )
    surroundings, steps = Surroundings.prepare(replica_options), Steps()
    replica = LocalReplica(surroundings, replica_options, lambda: 0.0, steps)
    if are_read:
        for name in dict.fromkeys(each.adapter for each in requests if each.adapter is not None):
            surroundings.host_store.acquire(name)
            surroundings.host_store.release(name)
    coming = deque(requests)
    answers: dict[str, Completion] = {}
    while coming or replica.num_unfinished:
        num_free = len(requests) if most_at_once is None else most_at_once - replica.num_unfinished
        replica.submit([coming.popleft() for _ in range(min(num_free, len(coming)))])
        for outcome in replica.poll():
            assert isinstance(outcome, Completion), outcome
            assert outcome.request.id not in answers
            answers[outcome.request.id] = outcome
        replica.check_integrity()
    replica.close()
    surroundings.host_store.close()
    return answers, steps


def assert_same(oracle: Oracle, answers: dict[str, Completion]) -> None:
    wrong = {
        f"{completion.request.id} ({completion.request.adapter})"
        for completion in answers.values()
        if list(completion.token_ids)
        != oracle.answers[completion.request.id][: completion.request.sampling.max_tokens]
    }
    assert not wrong, f"{len(wrong)} of {len(answers)} differ from PEFT: {sorted(wrong)[:8]}"


@pytest.mark.parametrize("prefix_caching", [True, False], ids=["prefix cache", "no prefix cache"])
@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_tokens_are_pefts(oracle: Oracle, chunk: int, prefix_caching: bool) -> None:
    answers, steps = answer(
        oracle,
        oracle.requests,
        prefill_chunk_tokens=chunk,
        prefix_caching=prefix_caching,
        kv_block_tokens=4,
        kv_memory="200KB",  # about 65 blocks; 208 requests would take up to 11 each
        adapter_memory="250KB",  # about half of the adapters
    )
    assert len(answers) == len(oracle.requests)
    assert_same(oracle, answers)
    assert sum(record.num_preempted for record in steps.records) > 0, "the cache was meant to be too small"
    assert sum(record.num_adapter_loads for record in steps.records) > 25, "and so was the adapter pool"
    assert (sum(record.num_cached_tokens for record in steps.records) > 0) == prefix_caching


@pytest.mark.parametrize("max_running", [1, 3, 256])
def test_the_batch_changes_nothing(oracle: Oracle, max_running: int) -> None:
    """Any order, any company."""
    shuffled = random.Random(max_running).sample(oracle.requests, k=60 if max_running < 256 else 208)
    assert_same(oracle, answer(oracle, shuffled, max_running=max_running)[0])


@pytest.mark.parametrize(
    ("lora_kernel", "chunk", "adapter_memory"),
    # Pieces of tiny adapters are mostly the gaps between them, and padded to rank 64 mostly padding.
    [("mbgmv", 7, "500KB"), ("mbgmv", 512, "500KB"), ("bgmv", 7, "2MB")],
)
def test_the_gpu_way_on_cpu_tensors(
    oracle: Oracle, lora_kernel: str, chunk: int, adapter_memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU's runner, pool and work lists, a step ahead of its tokens, with plain operators."""
    monkeypatch.setattr("caraserve_cli.fleet.surroundings.copies_adapters", lambda device: True)
    answers, steps = answer(
        oracle,
        oracle.requests,
        lora_kernel=lora_kernel,
        prefill_chunk_tokens=chunk,
        kv_block_tokens=4,
        kv_memory="200KB",
        adapter_memory=adapter_memory,
        max_running=32,
        max_batch_tokens=256,
    )
    assert len(answers) == len(oracle.requests)
    assert_same(oracle, answers)
    assert sum(record.num_preempted for record in steps.records) > 0
    assert sum(record.num_adapter_loads for record in steps.records) > 25


@pytest.mark.parametrize("is_gpu_way", [False, True], ids=["CPU", "the GPU's way"])
@pytest.mark.parametrize("cold_start", ["stream", "on-demand", "on-demand-blocking", "cpu-assist"])
def test_no_cold_start_changes_an_answer(
    oracle: Oracle, cold_start: str, is_gpu_way: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an adapter pool that is too small, so that most adapters are cold again and again, and with real
    CPU workers, more than this machine may have idle cores for."""
    monkeypatch.setattr("caraserve_cli.fleet.surroundings.copies_adapters", lambda device: is_gpu_way)
    # Patience with workers whose cores others take; what comes too late is `test_partial_assist`'s.
    monkeypatch.setattr(assistant, "_SLOWEST_FLOPS", 1.0)
    answers, steps = answer(
        oracle,
        oracle.requests,
        cold_start=cold_start,
        cpu_workers=2 if cold_start == "cpu-assist" else None,
        prefill_chunk_tokens=7,
        kv_block_tokens=4,
        adapter_memory="500KB" if is_gpu_way else "250KB",
        max_running=32,
        max_batch_tokens=256,
    )
    assert len(answers) == len(oracle.requests)
    assert_same(oracle, answers)
    ways = Counter(completion.cold_start.value for completion in answers.values())
    assert ways[cold_start] > 20
    assert sum(record.num_adapter_loads for record in steps.records) >= 24, "each of the adapters was cold"


@pytest.mark.parametrize(
    ("is_auto", "is_gpu_way"),
    [(False, False), (False, True), (True, True)],
    ids=["CPU", "the GPU's way", "auto, the GPU's way"],
)
def test_answers_of_one_token_whose_adapters_are_not_loaded(
    oracle: Oracle, is_auto: bool, is_gpu_way: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among longer ones, some of the same adapters; few at a time, so that most adapters are wanted once."""
    monkeypatch.setattr("caraserve_cli.fleet.surroundings.copies_adapters", lambda device: is_gpu_way)
    monkeypatch.setattr(assistant, "_SLOWEST_FLOPS", 1.0)
    if is_auto:  # by the model, of a machine whose copies of these small adapters take long
        profile = h200_profile()
        assert profile.link is not None
        auto = Auto(BreakEven(replace(profile, link=replace(profile.link, bytes_per_ms=100.0))))
        monkeypatch.setattr("caraserve_cli.fleet.local.choose_policy", lambda name, break_even: auto)
    requests = [
        replace(each, sampling=replace(each.sampling, max_tokens=1)) if number % 5 else each
        for number, each in enumerate(oracle.requests)
    ]
    answers, steps = answer(
        oracle,
        requests,
        most_at_once=8,
        cold_start="cpu-assist",
        cpu_workers=2,
        prefill_chunk_tokens=7,
        kv_block_tokens=4,
        adapter_memory="500KB" if is_gpu_way else "250KB",
        max_running=32,
        max_batch_tokens=256,
    )
    assert len(answers) == len(requests)
    assert_same(oracle, answers)
    num_loads, num_spared = (
        sum(getattr(record, name) for record in steps.records)
        for name in ("num_adapter_loads", "num_spared_loads")
    )
    assert num_spared > 50
    assert num_loads > 10


class Beside:
    """Computes what is cold beside the others, more and less of it by CPU workers."""

    name: ClassVar[str] = "auto"

    def decide(self, arrival: Arrival) -> Decision:
        """By turns of the prompts' lengths."""
        cpu_layers = arrival.prompt_tokens % (arrival.num_layers + 1)
        how = ColdStart.CPU_ASSIST if cpu_layers else ColdStart.STREAM
        return Decision(how, cpu_layers, beside_ms=1.0)


def steps_with_some_beside(
    oracle: Oracle, monkeypatch: pytest.MonkeyPatch, *, looks: int, device: DeviceName = "cpu"
) -> list[StepRecord]:
    """Those of a replica that answers all as PEFT does, what is cold computed beside the others. Whatever
    the device, the end of a step beside them is seen when it was looked for so many times. The engine looks
    twice a step: with two looks one step of the others is launched until then, with five there are three."""
    monkeypatch.setattr("caraserve_cli.fleet.surroundings.copies_adapters", lambda device: True)
    monkeypatch.setattr("caraserve_cli.fleet.local.choose_policy", lambda name, break_even: Beside())
    monkeypatch.setattr(assistant, "_SLOWEST_FLOPS", 1.0)
    looked = itertools.count(1)

    def has_ended(tokens: TokensUnderWay) -> bool:
        is_seen = next(looked) % looks == 0
        if is_seen:
            tokens._arrived.wait()
        return is_seen

    monkeypatch.setattr(TokensUnderWay, "has_ended", property(has_ended))
    answers, steps = answer(
        oracle,
        oracle.requests,
        device=device,
        are_read=True,
        cold_start="cpu-assist",
        cpu_workers=2,
        prefill_chunk_tokens=7,
        kv_block_tokens=4,
        kv_memory="200KB",
        adapter_memory="500KB",
        max_running=32,
        max_batch_tokens=256,
    )
    assert len(answers) == len(oracle.requests)
    assert_same(oracle, answers)
    return steps.records


def test_what_is_computed_beside_the_others_is_the_same(
    oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU's way."""
    steps = steps_with_some_beside(oracle, monkeypatch, looks=5)
    beside = [record for record in steps if record.is_beside]
    assert len(beside) > 10
    assert sum(record.num_assists for record in beside) > 5
    assert len(steps) > 2 * len(beside), "the others went on"


def test_two_processes_that_share_the_base(oracle: Oracle) -> None:
    """Tensor-parallel, with gloo between them."""
    answers, steps = answer(
        oracle,
        oracle.requests,
        tensor_parallel=2,
        prefill_chunk_tokens=7,
        kv_block_tokens=4,
        # A process has half of the heads, and most of the rows of adapters but not all are cut.
        kv_memory="100KB",
        adapter_memory="180KB",
    )
    assert len(answers) == len(oracle.requests)
    assert_same(oracle, answers)
    assert sum(record.num_preempted for record in steps.records) > 0, "the cache was meant to be too small"
    assert sum(record.num_adapter_loads for record in steps.records) > 25, "and so was the adapter pool"
    assert sum(record.num_cached_tokens for record in steps.records) > 0


def test_a_wrong_adapter_would_be_seen(oracle: Oracle) -> None:
    """The oracle can fail: no two adapters agree on all of their answers."""
    by_id = {request.id: request for request in oracle.requests}
    swapped = [
        dataclasses.replace(request, adapter=by_id[f"r{(number + 1) % 26}"].adapter)
        for number, request in enumerate(oracle.requests[:26])
    ]
    answers, _ = answer(oracle, swapped)
    num_same = sum(list(c.token_ids) == oracle.answers[c.request.id] for c in answers.values())
    assert num_same <= 3  # two requests of the base alone stand side by side
