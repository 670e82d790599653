"""The requests of the sample, with their expected answers: what `caraserve run` answers by default.

Every input is held out from training. Knows nothing of models: answers come from the tasks.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

from prompts import prompt_text
from tasks import TASK_OF_NAME, Task, showcase_inputs

REQUESTS_PER_ADAPTER = 6
MAX_TOKENS = 48
SEED = 7

# Some requests carry bounds, wide enough for a laptop, so that a report has deadlines to speak of.
_BOUNDS: dict[int, dict[str, int]] = {
    0: {"deadline_ms": 60_000},
    1: {"deadline_ms": 120_000, "ttft_slo_ms": 60_000},
    2: {"tpot_slo_ms": 1_000},
}
_CHAT_ADAPTERS = ("reverse", "spell", "team/roman")

Line: TypeAlias = dict[str, object]


def write_requests(path: Path, task_of_adapter: dict[str, Task]) -> None:
    """Writes one JSON object a line; requests of different adapters are interleaved."""
    with path.open("w", encoding="utf-8") as file:
        for line in request_lines(task_of_adapter):
            file.write(json.dumps(line) + "\n")


def request_lines(task_of_adapter: dict[str, Task]) -> Iterator[Line]:
    showcases = {
        name: showcase_inputs(task, REQUESTS_PER_ADAPTER, SEED) for name, task in task_of_adapter.items()
    }
    for number in range(REQUESTS_PER_ADAPTER):
        for name, task in task_of_adapter.items():
            task_input = showcases[name][number]
            yield {
                "id": f"{task.name}-{number}",
                "prompt": prompt_text(task_input),
                "adapter": name,
                "max_tokens": MAX_TOKENS,
                **_BOUNDS.get(number, {}),
                "metadata": {"task": task.name, "expected": task.answer(task_input)},
            }
    yield from _base_lines()
    yield from _chat_lines(task_of_adapter)


def _base_lines() -> Iterator[Line]:
    """The base alone repeats its input, and does a task that a `Task:` line names."""
    words = showcase_inputs(TASK_OF_NAME["reverse"], 4, SEED + 1)
    for number, word in enumerate(words):
        task = TASK_OF_NAME["upper"] if number % 2 else None
        yield {
            "id": f"base-{number}",
            "prompt": prompt_text(word, task.name if task else None),
            "adapter": None,
            "max_tokens": MAX_TOKENS,
            "metadata": {
                "task": task.name if task else "copy",
                "expected": task.answer(word) if task else word,
            },
        }


def _chat_lines(task_of_adapter: dict[str, Task]) -> Iterator[Line]:
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
