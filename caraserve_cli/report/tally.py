"""Counts and distributions over a group of answered requests: one adapter's, one rank's, or all.

Knows the keys of an output line and the formulas of `metrics`; knows no failed rows, which have no answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from caraserve_cli.report.distribution import Distribution
from caraserve_cli.report.metrics import is_exact_match

TIME_METRICS = ("queue_ms", "ttft_ms", "tpot_ms", "latency_ms")


@dataclass(slots=True, kw_only=True)
class Counts:
    """What can be added up over answered requests."""

    answered: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    slo_carried: int = 0
    slo_attained: int = 0
    exact_match_scored: int = 0
    exact_match_right: int = 0

    @classmethod
    def of_row(cls, row: Mapping[str, object]) -> Counts:
        """The counts of one output line.

        Raises:
            KeyError: the line lacks a key of the output format.
        """
        attained, right = row["slo_attained"], _exact_match(row)
        return cls(
            answered=1,
            prompt_tokens=_integer(row["prompt_tokens"]),
            completion_tokens=_integer(row["completion_tokens"]),
            slo_carried=int(attained is not None),
            slo_attained=int(attained is True),
            exact_match_scored=int(right is not None),
            exact_match_right=int(right is True),
        )

    def add(self, other: Counts) -> None:
        self.answered += other.answered
        self.prompt_tokens += other.prompt_tokens
        self.completion_tokens += other.completion_tokens
        self.slo_carried += other.slo_carried
        self.slo_attained += other.slo_attained
        self.exact_match_scored += other.exact_match_scored
        self.exact_match_right += other.exact_match_right


@dataclass(slots=True)
class Tally:
    """Counts and time distributions of a group. Takes 1 to 9 KB for up to 256 requests (their exact times),
    20 to 300 KB for any number beyond, depending on how far the times spread."""

    counts: Counts = field(default_factory=Counts)
    times: Mapping[str, Distribution] = field(
        default_factory=lambda: {name: Distribution() for name in TIME_METRICS}
    )

    def add_row(self, row: Mapping[str, object], counts: Counts) -> None:
        """Take in one output line, whose counts the caller already has."""
        self.counts.add(counts)
        for name, distribution in self.times.items():
            value = row[name]
            if isinstance(value, (int, float)):
                distribution.add(value)

    def merge(self, other: Tally) -> None:
        self.counts.add(other.counts)
        for name, distribution in self.times.items():
            distribution.merge(other.times[name])


def _exact_match(row: Mapping[str, object]) -> bool | None:
    """Whether the answer is the expected one; None where nothing is expected or there is no text."""
    metadata, text = row.get("metadata"), row["text"]
    if not isinstance(metadata, Mapping) or not isinstance(text, str):
        return None
    expected = metadata.get("expected")
    return is_exact_match(text, expected) if isinstance(expected, str) else None


def _integer(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(f"an output line counts tokens in whole numbers, not {value!r}")
    return value
