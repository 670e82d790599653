"""The running summary of a run, in memory that does not grow with the number of requests.

Fed with output lines, so that a live run and a resumed one (which reads its outputs.jsonl again) use the
very same fold. Knows no files, no clock and no adapter's rank: those come in when the report is built.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from caraserve_cli.events import StepRecord
from caraserve_cli.report.cold_totals import ColdTotals
from caraserve_cli.report.deadline_slack import DeadlineSlack
from caraserve_cli.report.engine_totals import EngineTotals
from caraserve_cli.report.failures import Failures
from caraserve_cli.report.prediction_totals import PredictionTotals
from caraserve_cli.report.slowest import SlowestRequests
from caraserve_cli.report.tally import Counts, Tally
from caraserve_cli.report.timeline import Timeline


class RunSummary:
    """Counts, percentiles and engine totals of a run; an `EventSink`.

    Memory: one `Tally` per adapter that was answered (see there: 1 to 9 KB each when used up to 256 times).
    The totals over adapters are merged from these when a report is built, not kept twice.
    """

    def __init__(self) -> None:
        self.counts = Counts()
        self.session_counts = Counts()
        self.engine = EngineTotals()
        self.predictions = PredictionTotals()
        self.cold = ColdTotals()  # of this session, as the engine's
        self.timeline = Timeline()  # of this session too
        self.slack = DeadlineSlack()
        self.slowest = SlowestRequests()
        self.failures = Failures()
        self.by_finish_reason: Counter[str] = Counter()
        self.by_cold_start: Counter[str] = Counter()
        self.by_error_code: Counter[str] = Counter()
        self._failed_with_bound = 0
        self._tallies: dict[str | None, Tally] = {}

    @property
    def num_failed(self) -> int:
        return self.by_error_code.total()

    @property
    def slo_carried(self) -> int:
        """Requests so far that carry a bound, answered or failed."""
        return self.counts.slo_carried + self._failed_with_bound

    @property
    def slo_attained(self) -> int:
        """Requests so far that met every bound they carry."""
        return self.counts.slo_attained

    @property
    def tallies(self) -> Mapping[str | None, Tally]:
        """What was answered, by adapter; None is the base alone."""
        return self._tallies

    def add_answer(self, row: Mapping[str, object], *, restored: bool = False) -> None:
        """Take in one output line (the keys of design.md).

        Args:
            row: the line as it is written to outputs.jsonl, or as read from there.
            restored: an earlier session answered it, so it does not count for this session's rates.

        Raises:
            KeyError: the line lacks a key of the output format.
        """
        counts = Counts.of_row(row)
        adapter = None if row["adapter"] is None else str(row["adapter"])
        tally = self._tallies.get(adapter)
        if tally is None:
            tally = self._tallies[adapter] = Tally()
        tally.add_row(row, counts)
        self.counts.add(counts)
        self.slack.add_row(row)
        self.slowest.add_row(row)
        if not restored:
            self.session_counts.add(counts)
            self.cold.add_row(row)
        self.by_finish_reason[str(row["finish_reason"])] += 1
        self.by_cold_start[str(row["cold_start"])] += 1

    def add_error(self, code: str, carried_bound: bool) -> None:
        """Take in one rejected or failed row; one that carried a bound missed it."""
        self.by_error_code[str(code)] += 1
        self._failed_with_bound += int(carried_bound)

    def add_missed(self, num_rows: int) -> None:
        """Rows that an earlier session rejected, and that the input shows to have carried a bound."""
        self._failed_with_bound += num_rows

    def on_step(self, record: StepRecord) -> None:
        self.engine.on_step(record)
        self.predictions.on_step(record)
        self.timeline.on_step(record)
