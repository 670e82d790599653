"""What one strategy gave for one repeat of a serving benchmark, in numbers. Knows no torch and no files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from caraserve_cli.bench.serving_recipe import STEP_BESIDE_LOAD
from caraserve_cli.core import Completion
from caraserve_cli.events import StepRecord
from caraserve_cli.report.distribution import Distribution
from caraserve_cli.report.metrics import measure, per_second, share

# A run did not keep up if in its last quarter this many times as many requests were unanswered as in its
# second quarter, and some more: with a queue that grows from nothing it is 2.3 times. Chosen, not measured.
_GROWTH = 1.5
_MORE_REQUESTS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingRun:
    """All requests of a case, each submitted when it arrived, answered once.

    Attributes:
        started_ms: when the run began, on the clock of all other times.
        completions: of all requests, if nothing is undone.
        steps: what the engine did.
        undone: what of the work was not done, None if all of it was.
    """

    started_ms: float
    completions: Sequence[Completion]
    steps: Sequence[StepRecord]
    undone: str | None

    def measured_ms(self) -> dict[str, float]:
        """Each of MEASURES that is defined."""
        requests = [measure(each) for each in self.completions]
        ttft_ms = _distribution(each.ttft_ms for each in requests)
        tpot_ms = _distribution(each.tpot_ms for each in requests if each.tpot_ms is not None)
        latency_ms = _distribution(each.latency_ms for each in requests)
        steps_ms = [step.end_ms - step.start_ms for step in self.steps if step.num_decode_tokens]
        found = {
            "mean_ttft": ttft_ms.mean,
            "p50_ttft": ttft_ms.quantile(0.5),
            "p99_ttft": ttft_ms.quantile(0.99),
            "mean_tpot": tpot_ms.mean,
            "p99_tpot": tpot_ms.quantile(0.99),
            "mean_latency": latency_ms.mean,
            "p99_latency": latency_ms.quantile(0.99),
            "longest_step": max(steps_ms, default=None),
        }
        return {name: value for name, value in found.items() if value is not None}

    @property
    def output_tokens_per_s(self) -> float | None:
        """From the start of the run to its last token."""
        num_tokens = sum(len(each.token_ids) for each in self.completions)
        return per_second(num_tokens, (self._last_token_ms - self.started_ms) / 1000)

    @property
    def requests_per_s(self) -> float | None:
        """Answered from the start of the run to its last token."""
        return per_second(len(self.completions), (self._last_token_ms - self.started_ms) / 1000)

    @property
    def slo_attainment(self) -> float | None:
        """Share of the requests that met all their bounds; None where they carry none."""
        judged = [measure(each).slo_attained for each in self.completions]
        attained = [each for each in judged if each is not None]
        return share(sum(attained), len(attained))

    @property
    def cold_starts(self) -> Mapping[str, int]:
        """How many requests came by their adapters in which way."""
        return dict(Counter(str(each.cold_start) for each in self.completions))

    @property
    def unanswered(self) -> tuple[float, float]:
        """Requests in the system, the mean over the second and over the last quarter of the time of the
        arrivals. Both alike, and they are Little's rate times latency; the last higher, and they pile up."""
        first_ms = self.started_ms
        quarter_ms = (max(each.timings.arrival_ms for each in self.completions) - first_ms) / 4
        return (
            self._mean_unanswered(first_ms + quarter_ms, first_ms + 2 * quarter_ms),
            self._mean_unanswered(first_ms + 3 * quarter_ms, first_ms + 4 * quarter_ms),
        )

    @property
    def kept_up(self) -> bool:
        """Whether requests were answered as fast as they arrived."""
        earlier, later = self.unanswered
        return later <= _GROWTH * earlier + _MORE_REQUESTS

    @property
    def _last_token_ms(self) -> float:
        last_ms = (each.timings.last_token_ms for each in self.completions)
        return max((each for each in last_ms if each is not None), default=self.started_ms)

    def _mean_unanswered(self, from_ms: float, to_ms: float) -> float:
        if to_ms <= from_ms:
            return 0.0
        overlaps_ms = (
            min(each.timings.last_token_ms or to_ms, to_ms) - max(each.timings.arrival_ms, from_ms)
            for each in self.completions
        )
        return sum(overlap_ms for overlap_ms in overlaps_ms if overlap_ms > 0) / (to_ms - from_ms)


def ratio_of(ours: ServingRun, over: ServingRun, measured: str) -> float | None:
    """One of MEASURES, or STEP_BESIDE_LOAD, of a run as a multiple of another's; None if undefined."""
    if measured == STEP_BESIDE_LOAD:
        return _step_beside_load_ratio(ours, over)
    above, below = ours.measured_ms().get(measured), over.measured_ms().get(measured)
    return None if above is None or below is None else share(above, below)


def _step_beside_load_ratio(ours: ServingRun, over: ServingRun) -> float | None:
    """95th percentile of the decode steps of `ours` that overlap a load, over that of the decode steps of
    `over` that overlap the same time since the start: both have the same arrivals there."""
    windows = _load_windows(ours)
    above = _decode_steps_in(ours, windows).quantile(0.95)
    below = _decode_steps_in(over, windows).quantile(0.95)
    return None if above is None or below is None else share(above, below)


def _load_windows(run: ServingRun) -> list[tuple[float, float]]:
    """From and to, since the start of the run: the step that begins to load, and the time that loads take."""
    return [
        (step.start_ms - run.started_ms, step.start_ms - run.started_ms + step.adapter_load_ms)
        for step in run.steps
        if step.num_adapter_loads
    ]


def _decode_steps_in(run: ServingRun, windows: Sequence[tuple[float, float]]) -> Distribution:
    return _distribution(
        step.end_ms - step.start_ms
        for step in run.steps
        if step.num_decode_tokens
        and any(
            step.start_ms - run.started_ms <= to_ms and step.end_ms - run.started_ms > from_ms
            for from_ms, to_ms in windows
        )
    )


def _distribution(values: Iterable[float]) -> Distribution:
    distribution = Distribution()
    for value in values:
        distribution.add(value)
    return distribution
