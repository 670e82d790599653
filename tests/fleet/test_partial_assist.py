"""CPU workers on some leading layers, held requests, and assistance that fails: the GPU's way on CPU tensors,
a step ahead of its tokens, over a slow link. The tokens are PEFT's.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from caraserve_cli.adapters.layer_order import LayerOrder
from caraserve_cli.coldstart.assistant import Assistance, Assistant, AssistedSegment
from caraserve_cli.coldstart.assisted_ops import AssistedOps
from caraserve_cli.coldstart.policy import Arrival, Decision
from caraserve_cli.core import ColdStart, Completion
from caraserve_cli.fleet.local import LocalReplica
from caraserve_cli.fleet.options import ReplicaOptions
from caraserve_cli.fleet.surroundings import Surroundings
from caraserve_cli.job.clock import RunClock
from tests.adapters.peft_variants import write_variants
from tests.fleet.families import FAMILIES, peft_answers
from tests.fleet.test_parity import Oracle, Steps, assert_same, make_requests

NUM_LAYERS = 6
# A small adapter takes some steps to arrive, the largest dozens.
LINK_GBPS = 0.01
STREAM = Decision(ColdStart.STREAM)
HELD = Decision(ColdStart.STREAM, hold_ms=15.0)
ON_DEMAND, BLOCKING = Decision(ColdStart.ON_DEMAND), Decision(ColdStart.ON_DEMAND_BLOCKING)
# By the leading layers that CPU workers compute; the first one streams.
ASSIST = (STREAM, *(Decision(ColdStart.CPU_ASSIST, k) for k in range(1, NUM_LAYERS + 1)))
ALL_WAYS = (*ASSIST, HELD, ON_DEMAND, BLOCKING)


class AnyOf:
    """A policy that draws one of these decisions; who cannot be assisted then streams."""

    name: ClassVar[str] = "any-of"

    def __init__(self, decisions: Sequence[Decision]) -> None:
        self._decisions, self._chance = decisions, random.Random(0)

    def decide(self, arrival: Arrival) -> Decision:
        """See `ColdStartPolicy`."""
        decision = self._chance.choice(self._decisions)
        can_assist = arrival.can_assist and arrival.free_workers > 0
        return decision if can_assist or not decision.cpu_layers else STREAM


class Assists:
    """Counts the results that are asked for, and makes every so-manieth fail, in the middle of a step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails_every: int | None) -> None:
        self.num_results: Counter[int] = Counter()  # by the layers that CPU workers compute
        self.num_failed = 0
        under_way: list[Assistance] = []
        begin, receive = Assistant.begin, AssistedOps.receive

        def begin_and_note(
            assistant: Assistant, segments: Sequence[AssistedSegment], num_tokens: int, cpu_layers: int
        ) -> Assistance | None:
            assistance = begin(assistant, segments, num_tokens, cpu_layers)
            under_way[:] = [] if assistance is None else [assistance]
            return assistance

        def receive_or_fail(ops: AssistedOps, layer: int, group: int, y: Tensor) -> None:
            if ops._words[layer, group].any():
                (assistance,) = under_way
                self.num_results[assistance.cpu_layers] += 1
                if fails_every and self.num_results.total() % fails_every == 0:
                    self.num_failed += 1
                    assistance.abandon()
            receive(ops, layer, group, y)

        monkeypatch.setattr(Assistant, "begin", begin_and_note)
        monkeypatch.setattr(AssistedOps, "receive", receive_or_fail)


def load_base() -> PreTrainedModel:
    """A Llama of NUM_LAYERS layers, the same in every call."""
    torch.manual_seed(0)
    config = FAMILIES["llama2"]().config
    assert isinstance(config, LlamaConfig)
    config.num_hidden_layers = NUM_LAYERS
    model = LlamaForCausalLM(config)
    model.generation_config.eos_token_id = None
    return model


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return make_oracle(tmp_path_factory.getbasetemp() / "deep")


@cache
def make_oracle(folder: Path) -> Oracle:
    """Once for all modules that use it."""
    folder.mkdir()
    load_base().save_pretrained(folder / "base")
    names = write_variants(folder / "adapters", load_base, seed=7)
    requests = make_requests([*names, None, None])[:104]
    answers = peft_answers(load_base(), folder / "adapters", names, requests)
    return Oracle(folder / "base", folder / "adapters", requests, answers)


@pytest.mark.parametrize(
    ("decisions", "fails_every", "chunk"),
    [
        (ASSIST[1:2], None, 7),
        (ASSIST[3:4], None, 512),
        (ASSIST[5:6], None, 7),
        ([HELD], None, 7),
        (ALL_WAYS, None, 7),
        (ALL_WAYS, 29, 7),
        (ALL_WAYS, 29, 512),
    ],
    ids=["first layer", "half", "all but one", "held", "mixed", "some fail", "some fail, whole prompts"],
)
def test_tokens_are_pefts(
    oracle: Oracle,
    decisions: Sequence[Decision],
    fails_every: int | None,
    chunk: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("caraserve_cli.fleet.surroundings.copies_adapters", lambda device: True)
    assists = Assists(monkeypatch, fails_every)
    options = ReplicaOptions(
        base=str(oracle.base),
        adapter_roots=(oracle.adapters,),
        dtype="float32",
        device="cpu",
        cold_start="cpu-assist",
        cpu_workers=2,
        prefill_chunk_tokens=chunk,
        kv_block_tokens=4,
        kv_memory="300KB",
        adapter_memory="900KB",
        max_running=12,
        max_batch_tokens=128,
    )
    surroundings, steps, clock = Surroundings.prepare(options), Steps(), RunClock()
    replica = LocalReplica(surroundings, options, clock, steps)
    clock.start()
    replica.emulate_link(LINK_GBPS)
    replica._engine.scheduler.cold_starts.policy = AnyOf(decisions)
    replica.submit(oracle.requests)
    answers: dict[str, Completion] = {}
    while replica.num_unfinished:
        for outcome in replica.poll():
            assert isinstance(outcome, Completion), outcome
            answers[outcome.request.id] = outcome
        replica.check_integrity()
    replica.close()
    surroundings.host_store.close()
    assert len(answers) == len(oracle.requests)
    assert_same(oracle, answers)
    # Whole pieces of a step, each of which has a graph on a GPU.
    ends = [end for _, end in LayerOrder().groups(NUM_LAYERS)]
    asked = {decision.cpu_layers for decision in decisions if decision.cpu_layers}
    assert set(assists.num_results) <= {next(end for end in ends if end >= layers) for layers in asked}
    assert bool(assists.num_results) == any(decision.cpu_layers for decision in decisions)
    assert (assists.num_failed > 0) == (fails_every is not None)
    assert sum(record.num_adapter_loads for record in steps.records) > 40, "the pool was meant to be small"
    assert sum(record.num_preempted for record in steps.records) > 0, "and so was the cache"
