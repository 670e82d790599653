"""How often the base and its adapters are exactly right: greedy decoding by transformers and PEFT.

As a script (`python sample_data/score.py`) it scores the sample as it lies on disk, on the CPU, and exits
with 1 if an adapter misses its bound. Knows nothing of training.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from peft import PeftModel
from prompts import prompt_text
from tasks import TASK_OF_NAME, Task, held_out_inputs
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

LOG = logging.getLogger("make_sample")

PROMPTS_PER_TASK = 128
MIN_EXACT_MATCH = 0.90
MAX_BASE_EXACT_MATCH = 0.20
MAX_NEW_TOKENS = 48
SEED = 20_251_123
DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Exact match of one adapter on the held-out prompts of its task, by dtype's name.

    Attributes:
        adapter: with the adapter.
        base: the base alone, on the same prompts.
        base_told_the_task: the base alone, with a `Task:` line before each prompt.
        wrong_adapter: another adapter, on the same prompts.
    """

    adapter: dict[str, float] = field(default_factory=dict)
    base: dict[str, float] = field(default_factory=dict)
    base_told_the_task: dict[str, float] = field(default_factory=dict)
    wrong_adapter: dict[str, float] = field(default_factory=dict)

    @property
    def is_good(self) -> bool:
        return (
            min(self.adapter.values()) >= MIN_EXACT_MATCH
            and max(self.base.values()) < MAX_BASE_EXACT_MATCH
            and max(self.wrong_adapter.values()) < MAX_BASE_EXACT_MATCH
        )


def greedy_answers(
    model: LlamaForCausalLM | PeftModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]
) -> list[str]:
    """The answers of one padded batch, without special tokens."""
    batch = tokenizer(list(prompts), return_tensors="pt", padding=True, padding_side="left").to(model.device)
    with torch.inference_mode():
        output = model.generate(  # type: ignore[misc]
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            do_sample=False,
            max_new_tokens=MAX_NEW_TOKENS,
        )
    answers = output[:, batch["input_ids"].shape[1] :]
    return [str(text) for text in tokenizer.batch_decode(answers, skip_special_tokens=True)]


def exact_match(
    model: LlamaForCausalLM | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    *,
    tell_task: bool = False,
    num_prompts: int = PROMPTS_PER_TASK,
    seed: int = SEED,
) -> float:
    """The fraction of held-out inputs of `task` that are answered to the letter."""
    inputs = held_out_inputs(task, num_prompts, seed)
    prompts = [prompt_text(text, task.name if tell_task else None) for text in inputs]
    answers = greedy_answers(model, tokenizer, prompts)
    return (
        sum(answer == task.answer(text) for text, answer in zip(inputs, answers, strict=True)) / num_prompts
    )


def score_sample(
    folder: Path, task_of_adapter: dict[str, Task], num_prompts: int = PROMPTS_PER_TASK
) -> dict[str, Score]:
    """Scores the base and every adapter below `folder`, on the CPU, as they lie on disk."""
    scores = {name: Score() for name in task_of_adapter}
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "base")
    for dtype in DTYPES:
        key = str(dtype).removeprefix("torch.")
        model = LlamaForCausalLM.from_pretrained(folder / "base", dtype=dtype)
        previous = list(task_of_adapter)[-1]
        for name, task in task_of_adapter.items():
            match = partial(exact_match, tokenizer=tokenizer, num_prompts=num_prompts)
            scores[name].base[key] = match(model, task=task)
            scores[name].base_told_the_task[key] = match(model, task=task, tell_task=True)
            adapted = PeftModel.from_pretrained(model, str(folder / "adapters" / name))
            scores[name].adapter[key] = match(adapted, task=task)
            # Each adapter is the wrong one for the task of the adapter before it.
            scores[previous].wrong_adapter[key] = match(adapted, task=task_of_adapter[previous])
            previous = name
            model = adapted.unload()
    return scores


def table(scores: dict[str, Score]) -> str:
    """The scores for people: one line an adapter, float32 / bfloat16."""
    lines = [f"{'adapter':<16}{'adapter':>15}{'base':>15}{'base, told':>15}{'wrong adapter':>15}"]
    for name, score in scores.items():
        columns = (score.adapter, score.base, score.base_told_the_task, score.wrong_adapter)
        cells = (" / ".join(f"{value:.3f}" for value in column.values()) for column in columns)
        lines.append(f"{name:<16}" + "".join(f"{cell:>15}" for cell in cells))
    return "\n".join(lines)


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description="Score the sample as it lies on disk, on the CPU.")
    parser.add_argument("--num-prompts", type=int, default=PROMPTS_PER_TASK, help="held-out prompts a task")
    options = parser.parse_args()
    folder = Path(__file__).resolve().parent
    evaluation = json.loads((folder / "evaluation.json").read_text())
    tasks = {name: TASK_OF_NAME[entry["task"]] for name, entry in evaluation["adapters"].items()}
    scores = score_sample(folder, tasks, options.num_prompts)
    LOG.info("%s", table(scores))
    return 0 if all(score.is_good for score in scores.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
