"""The progress display, with a clock that only the test moves."""

from __future__ import annotations

import errno
import re
from io import StringIO
from itertools import pairwise

import pytest
from rich.console import Console

from caraserve_cli.cli.progress import RunProgress
from caraserve_cli.report.progress_state import ProgressState


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Terminal(StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class FullFile(StringIO):
    """A stream whose disk may be full."""

    is_full = False

    def write(self, text: str, /) -> int:
        if self.is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(text)


class FullTerminal(FullFile, Terminal):
    """The same, and a terminal."""


def state(num_answered: int = 12, elapsed_s: float = 10.0, **changes: object) -> ProgressState:
    fields: dict[str, object] = {
        "num_answered": num_answered,
        "num_errors": 3,
        "num_running": 5,
        "num_waiting": 1040,
        "output_tokens": 12_340,
        "slo_met": 39,
        "slo_carried": 40,
        "fraction_read": None,
        "elapsed_s": elapsed_s,
        **changes,
    }
    return ProgressState(**fields)  # type: ignore[arg-type]


def test_plain_lines_every_ten_seconds_and_one_at_the_end() -> None:
    output, clock = StringIO(), Clock()
    with RunProgress(Console(file=output, width=80), clock) as progress:
        for step in range(2500):
            clock.now_s = 1000.0 + step * 0.01
            progress.update(state(num_answered=step, elapsed_s=step * 0.01))
    lines = output.getvalue().splitlines()
    assert [line.split(",")[0] + line.split(",")[1] for line in lines[:1]] == ["1000 answered"] or len(
        lines
    ) == 3
    assert lines[0].startswith("1,000 answered, 3 errors, 5 running, 1,040 waiting")
    assert lines[1].startswith("2,000 answered")
    assert lines[2].startswith("2,499 answered")
    assert "\x1b" not in output.getvalue()


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_full_disk_does_not_stop_the_run(is_terminal: bool) -> None:
    output, clock = (FullTerminal if is_terminal else FullFile)(), Clock()
    console = Console(file=output, width=80, force_terminal=is_terminal, force_interactive=is_terminal)
    with RunProgress(console, clock) as progress:
        output.is_full = True
        clock.now_s += 11.0
        progress.update(state())


def test_the_text_of_a_line() -> None:
    output = StringIO()
    with RunProgress(Console(file=output, width=80), Clock()) as progress:
        progress.update(state())
    assert output.getvalue() == (
        "12 answered, 3 errors, 5 running, 1,040 waiting, "
        "1,234 tokens/s, SLO attainment 97.5%, 10.0 s passed\n"
    )


def test_what_a_start_waits_for_is_on_a_terminal_only_and_goes_away() -> None:
    terminal, log = Terminal(), StringIO()
    console = Console(file=terminal, width=80, force_terminal=True, force_interactive=True)
    with RunProgress(console, Clock()) as progress:
        progress.stage("Starting: loading the base")
        assert "loading the base" in terminal.getvalue(), "at once"
        progress.update(state())
        after = terminal.getvalue().rpartition("loading the base")[2]
        assert "\x1b[2K" in after, "the state stands in its place"
        assert "12 answered" in after
    with RunProgress(Console(file=log, width=80), Clock()) as progress:
        progress.stage("Starting: loading the base")
    assert log.getvalue() == ""


def test_what_is_not_known_is_not_said() -> None:
    output = StringIO()
    with RunProgress(Console(file=output, width=80), Clock()) as progress:
        progress.update(state(elapsed_s=0.0, slo_carried=0, slo_met=0))
    assert output.getvalue() == "12 answered, 3 errors, 5 running, 1,040 waiting, 0.0 s passed\n"


def test_time_left_and_earlier_sessions() -> None:
    output = StringIO()
    with RunProgress(Console(file=output, width=80), Clock()) as progress:
        # 15 of this session's 1,060 rows took 10 s; 1,045 are left.
        earlier = {"num_answered_earlier": 1190, "num_errors_earlier": 10, "num_skipped": 200}
        progress.update(state(fraction_read=1.0, slo_carried=0, **earlier))
    assert output.getvalue().endswith(
        "1,190 answered and 10 errors in earlier sessions, 10.0 s passed, about 11:37 left\n"
    )


@pytest.mark.parametrize(
    ("answered", "errors", "text"),
    [(3, 0, "3 answered in earlier sessions, "), (0, 4, "4 errors in earlier sessions, "), (0, 0, "")],
)
def test_earlier_sessions_are_told_of_what_they_did(answered: int, errors: int, text: str) -> None:
    output = StringIO()
    with RunProgress(Console(file=output, width=80), Clock()) as progress:
        progress.update(state(num_answered_earlier=answered, num_errors_earlier=errors, slo_carried=0))
    assert f"1,234 tokens/s, {text}10.0 s passed" in output.getvalue()


def test_what_has_not_arrived_is_not_waiting() -> None:
    output = StringIO()
    with RunProgress(Console(file=output, width=80), Clock()) as progress:
        progress.update(state(num_running=0, num_waiting=0, num_to_come=64))
    assert ", 0 running, 0 waiting, 64 to come, 1,234 tokens/s, " in output.getvalue()


def test_a_run_without_updates_prints_nothing() -> None:
    output = StringIO()
    with RunProgress(Console(file=output), Clock()):
        pass
    assert output.getvalue() == ""


def test_the_last_state_is_printed_when_the_run_is_interrupted() -> None:
    output = StringIO()

    def run() -> None:
        with RunProgress(Console(file=output), Clock()) as progress:
            progress.update(state())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert output.getvalue().startswith("12 answered")


def test_a_pipe_stays_plain_even_when_colour_is_forced() -> None:
    output = StringIO()
    with RunProgress(Console(file=output, force_terminal=True, force_interactive=True), Clock()) as progress:
        progress.update(state())
    assert "\x1b[2K" not in output.getvalue()
    assert "\x1b[1A" not in output.getvalue()


def test_a_terminal_is_drawn_on_at_most_five_times_a_second() -> None:
    output, clock = Terminal(), Clock()
    console = Console(file=output, width=80, force_terminal=True, _environ={"TERM": "xterm"})
    with RunProgress(console, clock) as progress:
        for step in range(1000):
            clock.now_s = 1000.0 + step * 0.001
            progress.update(state(num_answered=step))
    drawn = sorted({int(number) for number in re.findall(r"(\d+) answered", output.getvalue())})
    assert drawn[0] == 0
    assert len(drawn) == 5
    assert all(later - earlier >= 200 for earlier, later in pairwise(drawn))


def test_a_terminal_is_shown_every_number_within_its_width() -> None:
    output = Terminal()
    console = Console(file=output, width=80, force_terminal=True, _environ={"TERM": "xterm"})
    with RunProgress(console, Clock()) as progress:
        progress.update(state(fraction_read=1.0))
        drawn = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", output.getvalue()).splitlines()
    assert drawn[:2] == [
        "12 answered, 3 errors, 5 running, 1,040 waiting, 1,234 tokens/s, SLO attainment ",
        "97.5%, 10.0 s passed, about 11:37 left",
    ]
    assert max(len(line) for line in drawn) <= 80


def test_nothing_ever_goes_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with RunProgress(clock=Clock()) as progress:
        progress.update(state())
        print("answer")  # noqa: T201
    captured = capsys.readouterr()
    assert captured.out == "answer\n"
    assert captured.err.startswith("12 answered")


def test_stdout_is_left_alone_while_the_display_is_live(capsys: pytest.CaptureFixture[str]) -> None:
    output = Terminal()
    console = Console(file=output, width=80, force_terminal=True, _environ={"TERM": "xterm"})
    with RunProgress(console, Clock()) as progress:
        progress.update(state())
        print("answer")  # noqa: T201
    assert capsys.readouterr().out == "answer\n"
    assert "answer\n" not in output.getvalue().replace(" answered", "")
