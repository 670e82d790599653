"""Makes the embedded sample from nothing: base model, adapters, requests, evaluation.

    python sample_data/make_sample.py --device cuda

Trains for minutes on a GPU; runs on a CPU too, slowly. Everything is drawn from `--seed`.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import train_adapters
import train_base
from safetensors import safe_open
from score import PROMPTS_PER_TASK, Score, exact_match, score_sample, table
from torch import nn
from train_adapters import RECIPES, AdapterRecipe, train_adapter
from training import Schedule
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from write_requests import request_lines, write_requests

LOG = logging.getLogger("make_sample")

# An adapter below this on the training device is trained again, longer, at most once.
RETRY_BELOW = 0.97
RETRY_PROMPTS = 256
_RETRY_SEED = 1


@dataclass(frozen=True, slots=True)
class Training:
    """What one adapter's training took."""

    num_steps: int
    seed: int
    seconds: float


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    start = time.monotonic()
    device, out = torch.device(options.device), Path(options.out)
    base = _make_base(options, device, out)
    base_seconds = time.monotonic() - start
    trainings = _make_adapters(options, base, out)
    tasks = {recipe.name: recipe.task for recipe in RECIPES}
    write_requests(out / "requests.jsonl", request_lines(tasks))
    scores = score_sample(out, tasks, options.num_prompts)
    evaluation = {
        "seed": options.seed,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "seconds": round(time.monotonic() - start, 1),
        "scored_on": "cpu",
        "prompts_per_task": options.num_prompts,
        "base": {
            "num_parameters": base.num_parameters(),
            "num_steps": options.base_steps,
            "seconds": round(base_seconds, 1),
        },
        "adapters": {
            recipe.name: _entry(recipe, out, trainings[recipe.name], scores[recipe.name])
            for recipe in RECIPES
        },
    }
    (out / "evaluation.json").write_text(json.dumps(evaluation, indent=1) + "\n", encoding="utf-8")
    LOG.info("%s", table(scores))
    return 0 if all(score.is_good for score in scores.values()) else 1


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", default=str(Path(__file__).resolve().parent), help="where the sample goes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--base-steps", type=int, default=train_base.SCHEDULE.num_steps)
    parser.add_argument(
        "--base-rows", type=int, default=train_base.CORPUS_ROWS, help="conversations to learn from"
    )
    parser.add_argument("--adapter-steps", type=int, default=train_adapters.SCHEDULE.num_steps)
    parser.add_argument(
        "--batch-rows", type=int, help="conversations in a batch, of the base and of adapters"
    )
    parser.add_argument("--num-prompts", type=int, default=PROMPTS_PER_TASK, help="held-out prompts a task")
    return parser.parse_args(arguments)


def _make_base(options: argparse.Namespace, device: torch.device, out: Path) -> LlamaForCausalLM:
    """Trains and saves the base; returns it as users will load it: float32 from the stored bfloat16."""
    LOG.info("base: %d steps on %s", options.base_steps, device)
    schedule = _scaled(train_base.SCHEDULE, options.base_steps, options.batch_rows)
    shutil.rmtree(out / "base", ignore_errors=True)
    loss = train_base.train_base(out / "base", schedule, options.base_rows, device, options.seed)
    LOG.info("base: last loss %.4f", loss)
    model = LlamaForCausalLM.from_pretrained(out / "base", dtype=torch.float32)
    nn.Module.to(model, device)
    return model


def _make_adapters(options: argparse.Namespace, base: LlamaForCausalLM, out: Path) -> dict[str, Training]:
    shutil.rmtree(out / "adapters", ignore_errors=True)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out / "base")
    first = _scaled(train_adapters.SCHEDULE, options.adapter_steps, options.batch_rows)
    trainings = {}
    for number, recipe in enumerate(RECIPES):
        told = exact_match(base, tokenizer, recipe.task, tell_task=True, seed=_RETRY_SEED)
        for schedule in (first, replace(first, num_steps=2 * first.num_steps)):
            start, seed = time.monotonic(), options.seed + 1 + number
            model = train_adapter(recipe, base, schedule, out / "adapters", seed)
            trainings[recipe.name] = Training(schedule.num_steps, seed, round(time.monotonic() - start, 1))
            match = exact_match(
                model,
                tokenizer,
                recipe.task,
                num_prompts=min(RETRY_PROMPTS, 2 * options.num_prompts),
                seed=_RETRY_SEED,
            )
            model.unload()
            LOG.info("adapter %s: exact match %.3f (the base, told the task: %.3f)", recipe.name, match, told)
            if match >= RETRY_BELOW:
                break
    return trainings


def _scaled(schedule: Schedule, num_steps: int, batch_rows: int | None) -> Schedule:
    return replace(schedule, num_steps=num_steps, batch_rows=batch_rows or schedule.batch_rows)


def _entry(recipe: AdapterRecipe, out: Path, training: Training, score: Score) -> dict[str, object]:
    """What evaluation.json says of one adapter. Ranks and sizes are read from the file, not the recipe."""
    path = out / "adapters" / recipe.name / "adapter_model.safetensors"
    with safe_open(path, framework="pt") as tensors:
        shapes = {key: tensors.get_slice(key).get_shape() for key in tensors.keys()}  # noqa: SIM118
    return {
        "task": recipe.task.name,
        "summary": recipe.task.summary,
        "lora_ranks": sorted({shape[0] for key, shape in shapes.items() if key.endswith("lora_A.weight")}),
        "target_modules": recipe.targets,
        "dtype": str(recipe.dtype).removeprefix("torch."),
        "num_parameters": sum(torch.Size(shape).numel() for shape in shapes.values()),
        "num_bytes": path.stat().st_size,
        **asdict(training),
        "exact_match": asdict(score),
    }


if __name__ == "__main__":
    sys.exit(main())
