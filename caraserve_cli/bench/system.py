"""What a benchmark compares: anything that answers a workload. Knows no particular system, and no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from caraserve_cli.bench.workload import Workload

CARASERVE = "caraserve"
PEFT_MIXED = "peft-mixed"
PEFT_ONE_ADAPTER = "peft-one-adapter"
# What a recipe can name; `systems.build_systems` makes them.
SYSTEM_NAMES = (CARASERVE, PEFT_MIXED, PEFT_ONE_ADAPTER)


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemRun:
    """One whole workload, answered.

    Attributes:
        answers: request id -> its output tokens, up to and including the EOS token; padding that a static
            batch computes after it is no output.
        seconds: from the first request's hand-over to the last answer's tokens on the host. Loading the base
            and reading adapters from disk are not part of it.
    """

    answers: Mapping[str, tuple[int, ...]]
    seconds: float

    @property
    def num_output_tokens(self) -> int:
        return sum(len(tokens) for tokens in self.answers.values())

    @property
    def tokens_per_s(self) -> float:
        """Output tokens a second."""
        return self.num_output_tokens / self.seconds


class System(Protocol):
    """Answers a workload as often as it is asked to, each time from the start."""

    @property
    def name(self) -> str: ...

    def answer(self, workload: Workload) -> SystemRun:
        """Answer every request greedily.

        Raises:
            InputError: a request cannot be answered.
        """
        ...
