"""What a benchmark of pairs found: times of both sides, their ratios, a verdict. Knows no torch, no files."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from caraserve_cli.bench.comparison import Spread, Verdict
from caraserve_cli.bench.engine_result import worst_verdict
from caraserve_cli.bench.paired_recipe import PAIRED
from caraserve_cli.bench.result_facts import MeasuredFacts

_TAIL = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One batch answered by both sides in lockstep; the first pair is the prefill, which yields every
    request's first token, each other one is a decoding step of all of them.

    Attributes:
        ours_ms, theirs_ms: of each pair; of equal length.
        undone: why both did not do the same work, None if they did.
    """

    ours_ms: Sequence[float]
    theirs_ms: Sequence[float]
    num_requests: int
    undone: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedCaseResult:
    """One case, each value of one pass.

    Attributes:
        reference: what ran beside, `peft` or `transformers`.
        step_over_reference: median over the pairs of decoding steps, of the ratio of the two times.
        p95_step_over_reference: the 95th percentile of our steps over that of the reference's.
        prefill_over_reference: that one pair's ratio; it is the TTFT's of a batch that is all there at once.
        ttft_ms, step_ms, p95_step_ms, tokens_per_s: ours.
        reference_step_ms: its median.
    """

    name: str
    reference: str
    num_requests: int
    step_over_reference: Spread
    p95_step_over_reference: Spread
    prefill_over_reference: Spread
    ttft_ms: Spread
    step_ms: Spread
    p95_step_ms: Spread
    tokens_per_s: Spread
    reference_step_ms: Spread
    undone: tuple[str, ...]

    @property
    def verdict(self) -> Verdict:
        return Verdict.CANNOT_TELL if self.undone else Verdict.MET

    def as_json(self) -> dict[str, object]:
        """What was measured, and the verdict."""
        return {**dataclasses.asdict(self), "verdict": self.verdict}


def judge_pairs(name: str, reference: str, passes: Sequence[Pass]) -> PairedCaseResult:
    """What the passes of a case say, of which there is at least one."""

    def spread(value: Callable[[Pass], float]) -> Spread:
        return Spread.of([value(each) for each in passes])

    return PairedCaseResult(
        name=name,
        reference=reference,
        num_requests=passes[0].num_requests,
        step_over_reference=spread(_median_ratio),
        p95_step_over_reference=spread(lambda each: _tail(each.ours_ms[1:]) / _tail(each.theirs_ms[1:])),
        prefill_over_reference=spread(lambda each: each.ours_ms[0] / each.theirs_ms[0]),
        ttft_ms=spread(lambda each: each.ours_ms[0]),
        step_ms=spread(lambda each: statistics.median(each.ours_ms[1:])),
        p95_step_ms=spread(lambda each: _tail(each.ours_ms[1:])),
        tokens_per_s=spread(lambda each: 1e3 * each.num_requests * len(each.ours_ms) / sum(each.ours_ms)),
        reference_step_ms=spread(lambda each: statistics.median(each.theirs_ms[1:])),
        undone=tuple(dict.fromkeys(each.undone for each in passes if each.undone is not None)),
    )


def _median_ratio(each: Pass) -> float:
    """Of pairs, not of medians: two neighbours saw the same state of the machine."""
    return statistics.median(
        ours / theirs for ours, theirs in zip(each.ours_ms[1:], each.theirs_ms[1:], strict=True)
    )


def _tail(times_ms: Sequence[float]) -> float:
    ordered = sorted(times_ms)
    return ordered[min(len(ordered) - 1, int(_TAIL * len(ordered)))]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedFacts(MeasuredFacts):
    """Under which circumstances was measured; see `MeasuredFacts`.

    `slow_decode`: by what factor our decoding steps were slowed on purpose; None for not at all.
    """

    device: str
    num_threads: int
    dtype: str
    num_adapters: int
    prompt_tokens: int
    output_tokens: int
    repeats: int
    slow_decode: float | None


@dataclass(frozen=True, slots=True)
class PairedResult:
    """What a benchmark of pairs found, and where.

    Attributes:
        skipped: name of each case whose reference is not installed → what to install.
    """

    facts: PairedFacts
    cases: tuple[PairedCaseResult, ...]
    skipped: dict[str, str]

    @property
    def verdict(self) -> Verdict:
        return worst_verdict((Verdict.MET, *(case.verdict for case in self.cases)))

    def as_json(self) -> dict[str, object]:
        """The content of the file that `--json` writes."""
        return {
            "kind": PAIRED,
            **self.facts.as_json(),
            "cases": [case.as_json() for case in self.cases],
            "skipped": self.skipped,
            "verdict": self.verdict,
        }
