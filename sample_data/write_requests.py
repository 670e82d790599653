"""Requests with their expected answers: the sample's, which `caraserve run` answers by default, and those of
the recipe `peft`.

    python sample_data/write_requests.py

writes both files again. Every input is held out from training. Knows nothing of models: answers come from the
tasks.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

from prompts import prompt_text
from tasks import TASK_OF_NAME, Task, showcase_inputs

REQUESTS_PER_ADAPTER = 6
MAX_TOKENS = 48
SEED = 7
# The recipe's own: other inputs than the sample's, 256 requests in all.
BENCH_REQUESTS_PER_ADAPTER = 19
BENCH_BASE_REQUESTS = 9
BENCH_SEED = 11

# Some requests carry bounds, wide enough for a laptop, so that a report has deadlines to speak of.
_BOUNDS: dict[int, dict[str, int]] = {
    0: {"deadline_ms": 60_000},
    1: {"deadline_ms": 120_000, "ttft_slo_ms": 60_000},
    2: {"tpot_slo_ms": 1_000},
}
_CHAT_ADAPTERS = ("reverse", "spell", "team/roman")

Line: TypeAlias = dict[str, object]


def write_requests(path: Path, lines: Iterable[Line]) -> None:
    """Writes one JSON object a line."""
    with path.open("w", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line) + "\n")


def request_lines(task_of_adapter: Mapping[str, Task]) -> Iterator[Line]:
    """The sample's: adapters interleaved, some requests with bounds; then the base alone, then chats."""
    for number, lines in enumerate(_rounds(task_of_adapter, REQUESTS_PER_ADAPTER, SEED)):
        for line in lines:
            metadata = line.pop("metadata")  # it goes last
            yield {**line, **_BOUNDS.get(number, {}), "metadata": metadata}
    yield from _base_lines()
    yield from _chat_lines(task_of_adapter)


def bench_lines(task_of_adapter: Mapping[str, Task]) -> Iterator[Line]:
    """The recipe's: adapters interleaved, and a request of the base alone after every second round."""
    words = iter(showcase_inputs(TASK_OF_NAME["reverse"], BENCH_BASE_REQUESTS, BENCH_SEED + 1))
    rounds = _rounds(task_of_adapter, BENCH_REQUESTS_PER_ADAPTER, BENCH_SEED)
    for number, lines in enumerate(rounds):
        yield from lines
        word = next(words, None) if number % 2 == 0 else None
        if word is not None:
            yield _line(f"base-{number // 2}", None, word, None)


def _rounds(task_of_adapter: Mapping[str, Task], num_rounds: int, seed: int) -> Iterator[list[Line]]:
    """One request of each adapter, as often as asked; no two of an adapter are alike."""
    inputs = {name: showcase_inputs(task, num_rounds, seed) for name, task in task_of_adapter.items()}
    for number in range(num_rounds):
        yield [
            _line(f"{task.name}-{number}", name, inputs[name][number], task)
            for name, task in task_of_adapter.items()
        ]


def _line(request_id: str, adapter: str | None, task_input: str, task: Task | None) -> Line:
    """A request without a `Task:` line; without a task its input is repeated."""
    return {
        "id": request_id,
        "prompt": prompt_text(task_input),
        "adapter": adapter,
        "max_tokens": MAX_TOKENS,
        "metadata": {
            "task": task.name if task else "copy",
            "expected": task.answer(task_input) if task else task_input,
        },
    }


def _base_lines() -> Iterator[Line]:
    """The base alone repeats its input, and does a task that a `Task:` line names."""
    words = showcase_inputs(TASK_OF_NAME["reverse"], 4, SEED + 1)
    for number, word in enumerate(words):
        task = TASK_OF_NAME["upper"] if number % 2 else None
        line = _line(f"base-{number}", None, word, task)
        yield {**line, "prompt": prompt_text(word, task.name if task else None)}


def _chat_lines(task_of_adapter: Mapping[str, Task]) -> Iterator[Line]:
    for name in _CHAT_ADAPTERS:
        task = task_of_adapter[name]
        [task_input] = showcase_inputs(task, 1, SEED + 2)
        yield _chat_line(f"chat-{task.name}", name, task, [("user", task_input)], task_input)
    task = TASK_OF_NAME["swap"]
    [word] = showcase_inputs(task, 1, SEED + 3)
    yield _chat_line("chat-base", None, task, [("system", task.name), ("user", word)], word)


def _chat_line(
    request_id: str, adapter: str | None, task: Task, messages: Iterable[tuple[str, str]], task_input: str
) -> Line:
    return {
        "id": request_id,
        "messages": [{"role": role, "content": content} for role, content in messages],
        "adapter": adapter,
        "max_tokens": MAX_TOKENS,
        "metadata": {"task": task.name, "expected": task.answer(task_input)},
    }


def _main() -> None:
    from train_adapters import RECIPES

    folder = Path(__file__).resolve().parent
    tasks = {recipe.name: recipe.task for recipe in RECIPES}
    write_requests(folder / "requests.jsonl", request_lines(tasks))
    write_requests(folder.parent / "recipes" / "peft-requests.jsonl", bench_lines(tasks))


if __name__ == "__main__":
    _main()
