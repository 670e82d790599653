"""How far a run is, as plain numbers: what `job` tells and `cli.progress` shows. Knows no display."""

from __future__ import annotations

from dataclasses import dataclass

from caraserve_cli.report.metrics import per_second, share


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressState:
    """Counts of this session at one moment; of bounds (`slo_*`) those of all sessions.

    `num_waiting` requests have arrived and do not run yet, `num_to_come` were read and have not arrived.
    `output_tokens` are all that were generated, those of answers under way included. `fraction_read` is the
    share of the input's bytes read so far (None for standard input), `most_rows` how many rows are taken at
    most, `elapsed_s` the time since the first request. Of earlier sessions: the rows they answered and those
    that failed, and `num_skipped`, how many of these the input has shown so far.
    """

    num_answered: int
    num_errors: int
    num_running: int
    num_waiting: int
    output_tokens: int
    slo_met: int
    slo_carried: int
    fraction_read: float | None
    elapsed_s: float
    num_to_come: int = 0
    num_answered_earlier: int = 0
    num_errors_earlier: int = 0
    num_skipped: int = 0
    most_rows: int | None = None

    @property
    def output_tokens_per_s(self) -> float | None:
        return per_second(self.output_tokens, self.elapsed_s)

    @property
    def slo_attainment(self) -> float | None:
        return share(self.slo_met, self.slo_carried)

    @property
    def fraction_done(self) -> float | None:
        """Share of all rows that are finished, skipped ones included; None when it cannot be told.

        Rows are read ahead of the answers, so the share of the file is scaled down by those in flight.
        """
        finished = self.num_skipped + self.num_answered + self.num_errors
        read = finished + self.num_running + self.num_waiting + self.num_to_come
        if self.fraction_read is None or not read:
            return None
        of_limit = read / self.most_rows if self.most_rows else 0.0
        return min(max(self.fraction_read, of_limit), 1.0) * finished / read

    @property
    def time_left_s(self) -> float | None:
        """Time for the rows that are left at this session's pace; None while there is no pace yet.

        The number of rows in the file is estimated from the rows read and the share of the bytes they took.
        """
        finished = self.num_answered + self.num_errors
        fraction_done = self.fraction_done
        if not finished or not fraction_done:
            return None
        num_rows = (self.num_skipped + finished) / fraction_done
        return (num_rows - self.num_skipped - finished) * self.elapsed_s / finished
