"""Plans made by hand on a tiny real base: the tokens are transformers', wherever chunks and blocks lie."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel

from caraserve_cli.adapters.host_store import HostStore
from caraserve_cli.adapters.library import AdapterLibrary
from caraserve_cli.core import Request, Sequence, Timings
from caraserve_cli.engine.model_runner import ModelRunner
from caraserve_cli.errors import AdapterError
from caraserve_cli.model.checkpoint import load_decoder
from caraserve_cli.model.config import load_decoder_config
from caraserve_cli.model.sampler import Sampled
from caraserve_cli.step_plan import AdapterLoad, ScheduledChunk, StepPlan
from tests.adapters.peft_variants import VARIANTS, write_variant
from tests.fleet.families import write_base

CPU = torch.device("cpu")
ADAPTERS = (VARIANTS[0].name, VARIANTS[3].name)
PROMPTS = ((5, 9, 17, 40, 3, 77, 12), (80, 6, 31), (5, 9, 17, 40, 9))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runner")
    load = write_base("qwen3", folder / "base")
    for number in (0, 3):
        write_variant(folder / "adapters", VARIANTS[number], load, seed=number)
    return folder


@pytest.fixture
def runner(folder: Path) -> ModelRunner:
    config = load_decoder_config(folder / "base")
    decoder = load_decoder(folder / "base", config, torch.float32, CPU)
    store = HostStore(AdapterLibrary.scan([folder / "adapters"]), config.shape, torch.float32, 10**8)
    return ModelRunner(decoder, store, num_kv_blocks=12, kv_block_tokens=4)


def make_sequence(prompt: tuple[int, ...], block_table: list[int], adapter_slot: int | None) -> Sequence:
    request = Request(id=str(prompt), line=1, prompt_token_ids=prompt)
    sequence = Sequence(request, Timings(0.0), list(prompt), len(prompt), max_output_tokens=4)
    sequence.block_table, sequence.adapter_slot = block_table, adapter_slot
    return sequence


def run(runner: ModelRunner, *chunks: ScheduledChunk) -> list[tuple[ScheduledChunk, Sampled]]:
    return runner.launch(StepPlan(chunks)).sampled()


def next_token(folder: Path, prompt: tuple[int, ...], adapter: str | None) -> int:
    model: PreTrainedModel | PeftModel
    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, folder / "adapters" / adapter)
    with torch.inference_mode():
        return int(model(input_ids=torch.tensor([prompt])).logits[0, -1].argmax())


def test_each_token_belongs_to_its_chunk(folder: Path, runner: ModelRunner) -> None:
    """Adapters mixed with the base, blocks in any order, a prompt in two steps beside whole ones."""
    for adapter_slot, adapter in enumerate(ADAPTERS):
        runner.adapters.load(AdapterLoad(adapter, adapter_slot, 0))
    tables, slots = ([7, 2], [11], [4, 0]), (1, None, 0)
    first, second, third = (
        make_sequence(prompt, table, slot) for prompt, table, slot in zip(PROMPTS, tables, slots, strict=True)
    )
    early = run(runner, ScheduledChunk(first, 0, 3, False), ScheduledChunk(second, 0, 3, True))
    assert [chunk.sequence for chunk, _ in early] == [second], "half a prompt yields no token"
    late = run(runner, ScheduledChunk(first, 3, 4, True), ScheduledChunk(third, 0, 5, True))
    chosen = {chunk.sequence.request.id: sampled.token_id for chunk, sampled in (*early, *late)}
    adapters = (ADAPTERS[1], None, ADAPTERS[0])
    assert chosen == {
        str(prompt): next_token(folder, prompt, adapter)
        for prompt, adapter in zip(PROMPTS, adapters, strict=True)
    }


def test_a_slot_holds_what_was_loaded_last(folder: Path, runner: ModelRunner) -> None:
    runner.adapters.load(AdapterLoad(ADAPTERS[0], 0, 0))
    runner.adapters.evict(0)
    runner.adapters.load(AdapterLoad(ADAPTERS[1], 0, 0))
    sequence = make_sequence(PROMPTS[0], [1, 3], 0)
    ((_, sampled),) = run(runner, ScheduledChunk(sequence, 0, 7, True))
    assert sampled.token_id == next_token(folder, PROMPTS[0], ADAPTERS[1])
    assert sampled.token_id != next_token(folder, PROMPTS[0], ADAPTERS[0]), "a stale slot would be seen"


def test_an_adapter_that_does_not_exist_is_named(runner: ModelRunner) -> None:
    with pytest.raises(AdapterError, match="'nobody'"):
        runner.adapters.load(AdapterLoad("nobody", 0, 0))
