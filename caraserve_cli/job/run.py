"""One run: a stream of requests in, answers and a report out.

Knows no terminal and no signals: progress goes to a callable, and whoever wants the run to stop asks.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from caraserve_cli.errors import ExitStatus, InputError, RowErrorCode
from caraserve_cli.fleet.replica import Replica
from caraserve_cli.fleet.replica_source import ReplicaSource
from caraserve_cli.job.arrival_plan import ArrivalPlan
from caraserve_cli.job.arrivals import Arrivals
from caraserve_cli.job.clock import RunClock
from caraserve_cli.job.earlier import EarlierSessions
from caraserve_cli.job.facts import find_lora_ranks, run_facts
from caraserve_cli.job.intake import Intake, Prepared
from caraserve_cli.job.options import RunOptions, updated_manifest
from caraserve_cli.job.prepare import Preparer
from caraserve_cli.job.replicas import open_replicas
from caraserve_cli.job.row_output import RowOutput
from caraserve_cli.job.run_result import RunResult
from caraserve_cli.job.stop_request import StopRequest
from caraserve_cli.model.generation_config import describe_unapplied
from caraserve_cli.report.html import write_html
from caraserve_cli.report.progress_state import ProgressState
from caraserve_cli.report.report_file import write_report
from caraserve_cli.report.run_report import build_report
from caraserve_cli.report.run_trace import RunTrace
from caraserve_cli.report.step_listeners import StepListeners
from caraserve_cli.report.summary import RunSummary
from caraserve_cli.report.trace_file import write_trace
from caraserve_cli.requests.export import export_answers
from caraserve_cli.requests.journal import Journal
from caraserve_cli.requests.manifest import MANIFEST_NAME
from caraserve_cli.requests.many_sources import open_all
from caraserve_cli.requests.opening import RequestSource
from caraserve_cli.requests.stream import RejectedRow, RowStream

# Requests prepared beyond those that run, so that admission never waits for the reader, and prefixes and
# adapters of the near future are known. More only costs memory.
LOOKAHEAD_REQUESTS = 256
# Rows tokenised in one call, so that the tokenizer's own threads have work. Chosen, not measured.
TOKENISED_TOGETHER = 64
# How long an idle loop sleeps before it looks again for input or for the user's stop.
IDLE_WAIT_S = 0.05
# How long replicas elsewhere are waited for before it looks for input again. Chosen, not measured.
MOST_POLL_WAIT_S = 0.01


class Run:
    """The loop between the input, a replica and the output folder.

    Args:
        options: what the user asked for.
        on_progress: told after every step.
        on_stage: told, before the first step, what is being waited for.
        on_note: told, in a line, what a user should know, most of it before the first answer.
        stop: asked by whoever wants the run to end early. Start-up is broken off, by KeyboardInterrupt; the
            step under way is finished.
        age_s: for how long the user has been waiting already, in seconds; counts as start-up.
    """

    def __init__(
        self,
        options: RunOptions,
        on_progress: Callable[[ProgressState], None],
        on_stage: Callable[[str], None],
        on_note: Callable[[str], None],
        stop: StopRequest,
        age_s: float,
    ) -> None:
        self._options = options
        self._on_progress = on_progress
        self._on_stage = on_stage
        self._on_note = on_note
        self._stop = stop
        self._clock = RunClock()
        self._summary = RunSummary()
        self._trace = RunTrace()
        self._arrivals = Arrivals()
        self._replica: Replica | None = None
        self._input_error: InputError | None = None
        self._startup_s = age_s
        self._starts_with_first = False
        self._told_of_no_adapters = False

    def execute(self) -> RunResult:
        """Answer everything that is not answered yet.

        Raises:
            OptionError: an option is wrong, or a row has an arrival of its own beside an arrival process.
            InputError: the base, the input or the output folder cannot be used, or the input broke off; what
                was read before is answered first.
        """
        started_s = time.perf_counter()
        self._on_stage("Starting: finding the base and the adapters")
        replicas = open_replicas(self._options, self._on_note)
        try:
            return self._execute(replicas, started_s)
        finally:
            replicas.close()

    def _execute(self, replicas: ReplicaSource, started_s: float) -> RunResult:
        options = self._options
        self._stop.check()
        roots = options.replica.adapter_roots
        if roots and not len(replicas.library):
            named = ", ".join(f"'{root}'" for root in roots)
            self._on_note(f"--adapters: no adapter, a folder with an adapter_config.json, is below {named}")
        plan = ArrivalPlan(options.arriving, options.replica.seed, replicas.library.names)
        with (
            open_all(options.sources, options.columns) as source,
            self._open_journal(replicas, plan) as journal,
        ):
            earlier = EarlierSessions(journal, options.defaults.bounds)
            earlier.restore(self._summary)
            self._starts_with_first = plan.is_by_process and earlier.num_rows > 0
            self._startup_s += time.perf_counter() - started_s
            if earlier.num_rows:
                source.pass_over(earlier.is_done)
            rows = RowStream(source, options.defaults, options.limit, plan.row_arrivals(), earlier.count_done)
            self._stop.finish_steps()
            self._answer_all(replicas, source, rows, journal, earlier)
            report = self._report(replicas, plan, resumed=earlier.num_rows > 0)
            journal.sync()  # what the report tells of is there
            write_report(report, options.out)
            write_html(report, options.out)
            write_trace(self._trace, options.out)
            exported = export_answers(journal.answers, options.out, options.output_format)
            num_rows = journal.num_answers + journal.num_errors - earlier.num_rows
        if self._input_error is not None:
            raise self._input_error
        return RunResult(report, num_rows, self._arrivals.num_late, self._exit_status(), exported)

    def _open_journal(self, replicas: ReplicaSource, plan: ArrivalPlan) -> Journal:
        dtype = str(replicas.dtype).removeprefix("torch.")
        options = self._options
        is_new = not (options.out / MANIFEST_NAME).exists()
        if options.resume:
            self._on_stage("Starting: reading what earlier sessions answered")
        journal = Journal.open(
            options.out,
            options.manifest(replicas.base.name, dtype, plan.process),
            resume=options.resume,
            retry_errors=options.retry_errors,
            update=updated_manifest,
            command=options.resume_command,
        )
        if options.resume and is_new:
            self._on_note(f"nothing to resume in {options.out}: starting")
        if options.ordered and options.retry_errors and not is_new:
            self._on_note("--ordered: answers to rows that are tried again come behind those that are there")
        if options.more_requests:
            self._on_note(f"{len(options.sources)} sources, one after the other, into {options.out}")
        return journal

    def _answer_all(
        self,
        replicas: ReplicaSource,
        source: RequestSource,
        rows: RowStream,
        journal: Journal,
        earlier: EarlierSessions,
    ) -> None:
        """The loop."""
        options = self._options
        preparer = Preparer.of(replicas, options.replica.seed)
        out = RowOutput(
            journal,
            self._summary,
            self._trace,
            replicas.tokenizer,
            source.place,
            token_ids=options.token_ids,
            ordered=options.ordered,
        )
        is_pipe = source.total_bytes is None  # whoever writes into it may wait for an answer
        intake = Intake(
            iter(rows),
            preparer,
            earlier.has_dealt_with,
            LOOKAHEAD_REQUESTS,
            1 if is_pipe else TOKENISED_TOGETHER,
        )
        try:
            while not self._stop.is_asked:
                self._take_in(intake, replicas, out)
                for outcome in self._replica.poll(self._idle_s()) if self._replica else ():
                    out.put(outcome)
                journal.flush()
                self._on_progress(self._progress(source, earlier))
                if intake.exhausted and not self._num_in_flight:
                    break
        finally:
            intake.close()
            try:
                journal.flush()
            finally:
                if self._replica is not None:
                    self._replica.close()
        self._summary.add_missed(earlier.num_misses)

    @property
    def _num_in_flight(self) -> int:
        return len(self._arrivals) + (self._replica.num_unfinished if self._replica else 0)

    def _take_in(self, intake: Intake, replicas: ReplicaSource, out: RowOutput) -> None:
        """Fill the window from the input, and submit what is due."""
        max_running = replicas.most_running
        window = max_running + LOOKAHEAD_REQUESTS
        room = min(window - self._num_in_flight, out.room)
        is_idle = self._replica is None or not self._replica.num_unfinished
        if room > 0:
            for item in self._read(intake, room, IDLE_WAIT_S if is_idle and not self._arrivals else None):
                out.expect(item)
                if isinstance(item, RejectedRow):
                    out.reject(item)
                    self._tell_of_no_adapters(item)
                else:
                    self._arrivals.add(item)
        if not self._arrivals:
            return
        if self._replica is None:
            self._replica = self._start_replica(replicas)
        now_ms = self._clock()
        due = self._arrivals.take_due(now_ms)
        if due:
            self._replica.submit(due)
        elif is_idle:
            time.sleep(min(IDLE_WAIT_S, (self._arrivals.next_ms - now_ms) / 1000.0))
        if self._num_in_flight >= window and self._replica.num_unfinished < max_running:
            self._arrivals.shut(now_ms)

    def _idle_s(self) -> float:
        """How long there is nothing to do but to wait for an answer."""
        if not self._arrivals:
            return MOST_POLL_WAIT_S
        return min(MOST_POLL_WAIT_S, max(0.0, (self._arrivals.next_ms - self._clock()) / 1000.0))

    def _read(self, intake: Intake, room: int, wait_s: float | None) -> list[Prepared]:
        """Up to `room` rows. What ended the input early is kept: the rows before it are answered first."""
        try:
            return intake.take(room, wait_s)
        except InputError as error:
            self._input_error = error
            return []

    def _start_replica(self, replicas: ReplicaSource) -> Replica:
        """Load the base, only once there is something to answer; then the clock starts."""
        started_s = time.perf_counter()
        self._on_stage("Starting: loading the base")
        with self._stop.breaking_off():
            replica = replicas.start(self._clock, StepListeners(self._summary, self._trace))
        self._startup_s += time.perf_counter() - started_s
        self._on_note(f"{replicas.device_description}: {replicas.memory_description}")
        for note in replicas.notes:
            self._on_note(note)
        settings, sampling = replicas.base.config.greedy_settings, self._options.defaults.sampling
        if (unapplied := describe_unapplied(settings, sampling)) is not None:
            self._on_note(unapplied)
        if (gbps := self._options.replica.emulate_link_gbps) is not None:
            self._on_note(f"emulated link: {gbps:g} GB/s")
        # What is left of a resumed run comes as it would have, without the wait for what is answered.
        self._clock.start(self._arrivals.next_ms if self._starts_with_first else 0.0)
        return replica

    def _tell_of_no_adapters(self, row: RejectedRow) -> None:
        """Once, if no folder of adapters was given, and rows name some."""
        if self._told_of_no_adapters or row.code != RowErrorCode.UNKNOWN_ADAPTER:
            return
        if not self._options.replica.adapter_roots:
            self._told_of_no_adapters = True
            self._on_note("rows name adapters, and there are none; give their folder with --adapters")

    def _progress(self, source: RequestSource, earlier: EarlierSessions) -> ProgressState:
        num_running = self._replica.num_running if self._replica else 0
        return ProgressState(
            num_answered=self._summary.session_counts.answered,
            num_errors=self._summary.num_failed - earlier.num_errors,
            num_running=num_running,
            num_waiting=self._num_in_flight - len(self._arrivals) - num_running,
            num_to_come=len(self._arrivals),
            output_tokens=self._summary.engine.answer_tokens,
            slo_met=self._summary.slo_attained,
            slo_carried=self._summary.slo_carried,
            fraction_read=None if not source.total_bytes else source.bytes_read / source.total_bytes,
            elapsed_s=self._clock.running_ms / 1000.0,
            num_answered_earlier=earlier.num_answers,
            num_errors_earlier=earlier.num_errors,
            num_skipped=earlier.num_skipped,
            most_rows=self._options.limit,
        )

    def _report(self, replicas: ReplicaSource, plan: ArrivalPlan, *, resumed: bool) -> dict[str, object]:
        facts = run_facts(
            self._options,
            replicas,
            plan,
            startup_s=self._startup_s,
            duration_s=self._clock.running_ms / 1000.0,
            resumed=resumed,
            interrupted=self._stop.is_asked,
            num_late=self._arrivals.num_late,
        )
        return build_report(self._summary, facts, find_lora_ranks(replicas.library, self._summary.tallies))

    def _exit_status(self) -> int:
        if self._stop.is_asked:
            return ExitStatus.INTERRUPTED
        return ExitStatus.ROWS_FAILED if self._summary.num_failed else ExitStatus.OK
