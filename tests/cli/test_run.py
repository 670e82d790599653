"""`caraserve run` where all is well: the sample, the forms that input comes in, and the run-wide options."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import orjson
import pytest
import zstandard

from caraserve_cli.cli.progress import RunProgress
from tests.cli.command import (
    ROOT,
    SAMPLE,
    Row,
    caraserve_command,
    read_rows,
    rows_by_id,
    run_caraserve,
    user_environment,
    write_rows,
)
from tests.cli.conftest import Caraserve
from tests.cli.forked import start_caraserve

SAMPLE_JOB = ("run", "--base", SAMPLE / "base", "--adapters", SAMPLE / "adapters", "--dtype", "float32")
SAMPLE_ROWS = read_rows(SAMPLE / "requests.jsonl")


def is_right(answer: Row) -> bool:
    return bool(answer["text"].strip() == answer["metadata"]["expected"])


def test_the_sample_from_any_folder(tmp_path: Path) -> None:
    """Nothing but --out: every request answered, how well each adapter did in report.json and printed."""
    ended = run_caraserve("run", "--out", "out", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    answers = rows_by_id(tmp_path / "out" / "outputs.jsonl")
    assert answers.keys() == {row["id"] for row in SAMPLE_ROWS}
    assert read_rows(tmp_path / "out" / "errors.jsonl") == []
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["requests"]["answered"] == len(SAMPLE_ROWS)
    scored = Counter(answer["adapter"] for answer in answers.values())
    right = Counter(answer["adapter"] for answer in answers.values() if is_right(answer))
    printed = [line.split() for line in ended.stdout.splitlines()]
    for entry in report["by_adapter"]:
        adapter = entry["adapter"]
        assert entry["exact_match"]["right"] == right[adapter] >= 0.9 * scored[adapter]
        assert entry["exact_match"]["scored"] == scored[adapter] > 0
        (line,) = [words for words in printed if words and words[0] == (adapter or "(base)")]
        assert line[-1] == f"{right[adapter]}/{scored[adapter]}"
    assert {entry["adapter"] for entry in report["by_adapter"]} == set(scored)
    assert {"ttft_ms", "tpot_ms", "latency_ms"} <= report["times"].keys()
    written = ended.stdout[ended.stdout.index("Written:") :].split()[1:]
    assert {Path(path).name for path in written} == {path.name for path in (tmp_path / "out").iterdir()}


def test_what_a_start_waits_for_is_told_and_counted(
    caraserve: Caraserve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the start of the command on: most of it is imports, before anything of a run is there."""
    stages: list[str] = []
    monkeypatch.setattr(RunProgress, "stage", lambda _progress, text: stages.append(text))
    monkeypatch.setattr("caraserve_cli.cli.run.command_age_s", lambda: 5000.0)
    job = (*SAMPLE_JOB, "--out", tmp_path / "out", write_rows(tmp_path / "r.jsonl", SAMPLE_ROWS[:1]))
    assert "after 1:23:" in caraserve(*job).stdout
    assert json.loads((tmp_path / "out" / "report.json").read_text())["run"]["startup_s"] > 5000.0
    assert [stage.removeprefix("Starting: ") for stage in stages] == [
        "loading PyTorch and transformers",
        "finding the base and the adapters",
        "loading the base",
    ]
    caraserve(*job, "--resume")
    assert stages[-1] == "Starting: reading what earlier sessions answered"
    caraserve(*job, "--dry-run")
    assert stages[-1] == "Starting: loading PyTorch and transformers"


def test_who_types_requests_is_told_how_to_end_them(caraserve: Caraserve, tmp_path: Path) -> None:
    keyboard, terminal = os.openpty()
    standard_input = os.dup(0)
    os.dup2(terminal, 0)
    try:
        os.write(keyboard, b'{"prompt": "a", "max_tokens": 1}\n\x04')
        ended = caraserve(*SAMPLE_JOB, "--out", tmp_path / "out", "-")
    finally:
        os.dup2(standard_input, 0)
        for descriptor in (keyboard, terminal, standard_input):
            os.close(descriptor)
    assert ended.returncode == 0
    assert ended.stderr.startswith("reading requests from this terminal, a JSON object a line; Ctrl-D ends")
    assert len(read_rows(tmp_path / "out" / "outputs.jsonl")) == 1


def test_what_a_shell_did_before_in_the_same_process_is_not_counted() -> None:
    code = "from caraserve_cli.cli.command_age import command_age_s; print(command_age_s())"
    begun_s = time.monotonic()
    told = subprocess.run(
        ["sh", "-c", 'sleep 1; exec "$0" -c "$1"', sys.executable, code],
        env=user_environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert 0 < float(told.stdout) < time.monotonic() - begun_s - 1


def test_answers_have_the_documented_keys(caraserve: Caraserve, tmp_path: Path) -> None:
    requests = write_rows(tmp_path / "r.jsonl", [{**SAMPLE_ROWS[0], "logprobs": 2}])
    ended = caraserve(*SAMPLE_JOB, "--out", tmp_path / "out", "--token-ids", requests)
    assert ended.returncode == 0
    (answer,) = read_rows(tmp_path / "out" / "outputs.jsonl")
    assert list(answer) == [
        "id",
        "adapter",
        "text",
        "token_ids",
        "finish_reason",
        "prompt_tokens",
        "completion_tokens",
        "cold_start",
        "queue_ms",
        "ttft_ms",
        "tpot_ms",
        "latency_ms",
        "load_ms",
        "load_hidden_ms",
        "load_wait_ms",
        "disk_wait_ms",
        "room_wait_ms",
        "stalled_ms",
        "assisted_ms",
        "preempted_ms",
        "slack_ms",
        "failed_assists",
        "slo_attained",
        "logprobs",
        "metadata",
    ]
    assert answer["metadata"] == SAMPLE_ROWS[0]["metadata"]
    assert answer["finish_reason"] == "stop"
    assert answer["completion_tokens"] == len(answer["token_ids"]) == len(answer["logprobs"])
    assert answer["token_ids"][-1] == 257, "the EOS that ended the answer is counted"
    assert answer["text"].strip() == SAMPLE_ROWS[0]["metadata"]["expected"], "and not shown"
    assert all(len(position["top"]) == 2 for position in answer["logprobs"])
    assert answer["cold_start"] == "stream"
    assert answer["load_ms"] is answer["load_hidden_ms"] is None, "nothing is copied on a CPU"
    assert answer["load_wait_ms"] == answer["stalled_ms"] == answer["assisted_ms"] == 0
    assert answer["slo_attained"] is True


def test_what_an_answer_of_one_token_leaves_out(caraserve: Caraserve, tmp_path: Path) -> None:
    """No gap between tokens, no metadata; equal lines without an id are two requests."""
    requests = write_rows(tmp_path / "r.jsonl", [{"prompt": "a", "max_tokens": 1}] * 2)
    assert caraserve(*SAMPLE_JOB, "--out", tmp_path / "out", requests).returncode == 0
    answers = rows_by_id(tmp_path / "out" / "outputs.jsonl")
    assert len(answers) == 2
    for answer in answers.values():
        assert answer["tpot_ms"] is None
        assert "metadata" not in answer


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_compressed_requests(caraserve: Caraserve, tmp_path: Path, kind: str) -> None:
    """And --limit takes rows from the start."""
    data = (SAMPLE / "requests.jsonl").read_bytes()
    packed = gzip.compress(data) if kind == "gz" else zstandard.compress(data)
    requests = tmp_path / f"r.jsonl.{kind}"
    requests.write_bytes(packed)
    ended = caraserve(*SAMPLE_JOB, "--out", tmp_path / "out", "--limit", "3", requests)
    assert ended.returncode == 0
    answers = rows_by_id(tmp_path / "out" / "outputs.jsonl")
    assert answers.keys() == {row["id"] for row in SAMPLE_ROWS[:3]}
    assert all(map(is_right, answers.values()))


def test_the_default_output_folder_is_named_after_the_requests(
    caraserve: Caraserve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two nights go to two folders."""
    monkeypatch.chdir(tmp_path)
    for night in ("nightly.2026-01-30", "nightly.2026-01-31"):
        requests = tmp_path / f"{night}.jsonl.gz"
        requests.write_bytes(gzip.compress(b'{"prompt": "a", "max_tokens": 1}'))
        assert caraserve(*SAMPLE_JOB, requests).returncode == 0
        assert len(read_rows(tmp_path / "caraserve-out" / night / "outputs.jsonl")) == 1


def test_standard_input_is_answered_as_it_comes_and_ctrl_c_ends_the_wait(tmp_path: Path) -> None:
    """The answer to a first row does not wait for a second one, nor Ctrl-C for the end of the input."""
    outputs = tmp_path / "out" / "outputs.jsonl"
    process = subprocess.Popen(
        caraserve_command(*SAMPLE_JOB, "--out", tmp_path / "out", "-"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=user_environment(),
        cwd=ROOT,
    )
    with process:
        assert process.stdin is not None
        for number, row in enumerate(SAMPLE_ROWS[:2]):
            process.stdin.write(json.dumps(row) + "\n")
            process.stdin.flush()
            give_up_s = time.monotonic() + 120
            while not outputs.exists() or len(read_rows(outputs)) <= number:
                assert time.monotonic() < give_up_s, "no answer while the input is open"
                assert process.poll() is None
                time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        # With the input still open: communicate() would close it.
        assert process.wait(timeout=60) == 130
        assert process.stderr is not None
        last_line = process.stderr.read().splitlines()[-1]
        assert last_line.startswith("Stopped. To go on: ")
        assert last_line.endswith(f"--out {tmp_path / 'out'} -, with the same standard input")
    assert all(map(is_right, read_rows(outputs)))


def test_run_wide_defaults_fill_what_rows_leave_out(caraserve: Caraserve, tmp_path: Path) -> None:
    word = SAMPLE_ROWS[0]["prompt"]
    requests = write_rows(
        tmp_path / "r.jsonl",
        [
            {"id": "all", "prompt": word},
            {"id": "own", "prompt": word, "adapter": None, "max_tokens": 2, "logprobs": 0},
        ],
    )
    ended = caraserve(
        *SAMPLE_JOB,
        *("--out", tmp_path / "out", "--adapter", "upper", "--max-tokens", "5", "--ignore-eos"),
        *("--temperature", "0.5", "--top-k", "1", "--logprobs", "3", "--deadline-ms", "60000", requests),
    )
    assert ended.returncode == 0
    answers = rows_by_id(tmp_path / "out" / "outputs.jsonl")
    assert answers["all"]["adapter"] == "upper"
    assert answers["all"]["completion_tokens"] == 5
    assert answers["all"]["slo_attained"] is True
    assert {len(position["top"]) for position in answers["all"]["logprobs"]} == {3}
    assert answers["own"]["adapter"] is None
    assert answers["own"]["completion_tokens"] == 2
    assert "logprobs" not in answers["own"]


def test_a_stop_token_given_for_the_run(caraserve: Caraserve, tmp_path: Path) -> None:
    requests = write_rows(tmp_path / "r.jsonl", [SAMPLE_ROWS[0]])  # the answer is HORIZON
    ended = caraserve(*SAMPLE_JOB, "--out", tmp_path / "out", "--stop-token-ids", str(ord("I")), requests)
    assert ended.returncode == 0
    (answer,) = read_rows(tmp_path / "out" / "outputs.jsonl")
    assert answer["completion_tokens"] == len("HORI")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["run"]["options"]["default_stop_token_ids"] == [ord("I")]
    assert report["run"]["options"]["lora_kernel"] == "mbgmv"


def test_names_of_files_that_are_no_utf8(caraserve: Caraserve, tmp_path: Path) -> None:
    """They are written out in run.json and report.json, which are UTF-8."""
    folder = tmp_path / "f\udcff"
    folder.mkdir()
    requests = write_rows(folder / "r\udcff.jsonl", [{"prompt": "a", "max_tokens": 1}])
    job = ("run", "--base", SAMPLE / "base", "--adapters", folder, "--out", folder / "out", requests)
    assert caraserve(*job).returncode == 0
    assert caraserve(*job, "--resume").returncode == 0
    manifest = json.loads((folder / "out" / "run.json").read_text())
    assert manifest["requests"].endswith("/f\\udcff/r\\udcff.jsonl")


def test_a_stop_string_given_for_the_run(caraserve: Caraserve, tmp_path: Path) -> None:
    requests = write_rows(tmp_path / "r.jsonl", [SAMPLE_ROWS[0]])  # the answer is HORIZON
    ended = caraserve(*SAMPLE_JOB, "--out", tmp_path / "out", "--stop", "ZZ", "--stop", "IZ", requests)
    assert ended.returncode == 0
    (answer,) = read_rows(tmp_path / "out" / "outputs.jsonl")
    assert answer["text"] == "HOR"
    assert answer["finish_reason"] == "stop"


def test_a_dry_run_tells_everything_and_writes_nothing(
    caraserve: Caraserve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [*SAMPLE_ROWS[:2], {"id": "lost", "prompt": "a", "adapter": "uper"}, {"id": "x", "promt": "a"}]
    requests = write_rows(tmp_path / "r.jsonl", rows)
    ended = caraserve(*SAMPLE_JOB, "--dry-run", requests)
    assert ended.returncode == 3
    told = [orjson.loads(line) for line in ended.stdout.splitlines()]
    assert [(row["line"], row["id"], row["code"]) for row in told] == [
        (3, "lost", "unknown_adapter"),
        (4, "x", "invalid_request"),
    ]
    assert ended.stderr == "2 rows can be answered, 2 cannot.\n"
    assert caraserve(*SAMPLE_JOB, "--dry-run", "--limit", "2", requests).returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["r.jsonl"]


def test_a_request_is_not_scheduled_before_it_arrives(caraserve: Caraserve, tmp_path: Path) -> None:
    """Whatever the order of the rows; times count from the arrival."""
    rows = [
        {"id": "late", "prompt": "a", "max_tokens": 1, "arrival_ms": 600, "metadata": {"n": 1}},
        {"id": "soon", "prompt": "a", "max_tokens": 1, "arrival_ms": 0},
    ]
    ended = caraserve(*SAMPLE_JOB, "--out", tmp_path / "out", write_rows(tmp_path / "r.jsonl", rows))
    assert ended.returncode == 0
    answers = read_rows(tmp_path / "out" / "outputs.jsonl")
    assert [answer["id"] for answer in answers] == ["soon", "late"]
    assert all(answer["queue_ms"] >= 0 and answer["ttft_ms"] >= 0 for answer in answers)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["run"]["duration_s"] >= 0.6


def test_rows_behind_many_that_arrive_later_are_counted_and_told_of(
    caraserve: Caraserve, tmp_path: Path
) -> None:
    """With --max-running 8 no more than 264 rows are read ahead."""
    row: Row = {"prompt": "a", "max_tokens": 1}
    rows: list[Row] = [*[{**row, "arrival_ms": 1000}] * 290, {**row, "id": "early", "arrival_ms": 5}]
    job = (*SAMPLE_JOB, "--max-running", "8")
    ended = caraserve(*job, "--out", tmp_path / "out", write_rows(tmp_path / "r.jsonl", rows))
    assert ended.returncode == 0
    assert ended.stderr.splitlines()[-1] == (
        "1 rows were submitted late: they stand in the file behind rows that arrive later; "
        "sort the file by arrival_ms."
    )
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["requests"]["submitted_late"] == 1
    assert rows_by_id(tmp_path / "out" / "outputs.jsonl")["early"]["queue_ms"] > 900

    rows.insert(0, rows.pop())
    ended = caraserve(*job, "--out", tmp_path / "sorted", write_rows(tmp_path / "r.jsonl", rows))
    assert ended.returncode == 0
    assert "late" not in ended.stderr


def test_an_arrival_while_the_loop_looks_at_the_clock(
    caraserve: Caraserve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left to wait may be gone when the wait begins."""
    monkeypatch.setattr("caraserve_cli.job.run.RunClock", SlowClock)
    monkeypatch.setattr("caraserve_cli.job.run.IDLE_WAIT_S", 0.001)
    rows = [{"prompt": "a", "max_tokens": 1, "arrival_ms": number * 1010} for number in range(20)]
    ended = caraserve(*SAMPLE_JOB, "--out", tmp_path / "out", write_rows(tmp_path / "r.jsonl", rows))
    assert ended.returncode == 0
    assert len(read_rows(tmp_path / "out" / "outputs.jsonl")) == 20


class SlowClock:
    """20 ms pass whenever it is looked at."""

    def __init__(self) -> None:
        self._now_ms = 0.0

    def start(self, from_ms: float = 0.0) -> None:
        """It runs already."""

    @property
    def running_ms(self) -> float:
        return self()

    def __call__(self) -> float:
        self._now_ms += 20.0
        return self._now_ms


def test_a_named_pipe_is_answered_as_it_comes(tmp_path: Path) -> None:
    """As standard input: the answer to a first row does not wait for a second one."""
    pipe, out = tmp_path / "r.jsonl", tmp_path / "out"
    os.mkfifo(pipe)
    process = start_caraserve(*SAMPLE_JOB, "--out", out, pipe, stderr=tmp_path / "stderr")
    with open(os.open(pipe, os.O_RDWR), "w") as file:  # for writing alone it would wait for a reader
        for number, row in enumerate(SAMPLE_ROWS[:2], start=1):
            file.write(json.dumps(row) + "\n")
            file.flush()
            give_up_s = time.monotonic() + 60
            while not (out / "outputs.jsonl").exists() or len(read_rows(out / "outputs.jsonl")) < number:
                assert time.monotonic() < give_up_s, "no answer while the pipe is open"
                assert process.exitcode is None
                time.sleep(0.05)
    process.join(60)
    assert process.exitcode == 0


def test_the_summary_survives_names_that_look_like_markup(caraserve: Caraserve, tmp_path: Path) -> None:
    requests = write_rows(tmp_path / "r.jsonl", [{"prompt": "a", "max_tokens": 1}])
    ended = caraserve(*SAMPLE_JOB, "--out", tmp_path / "[bold]out[/]", requests)
    assert ended.returncode == 0
    assert re.search(r"\[bold\]out\[/\]/outputs\.jsonl", ended.stdout)


def test_what_the_base_asks_for_and_is_not_applied_is_told(caraserve: Caraserve, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for file in (SAMPLE / "base").iterdir():
        (base / file.name).symlink_to(file.resolve())
    (base / "generation_config.json").unlink(missing_ok=True)
    (base / "generation_config.json").write_text('{"do_sample": true, "repetition_penalty": 1.05}')
    requests = write_rows(tmp_path / "r.jsonl", [{"prompt": "a", "max_tokens": 1}])
    told = "the base's generation_config.json has repetition_penalty 1.05"
    for number, option in enumerate(((), ("--repetition-penalty", "1.2"))):
        ended = caraserve("run", "--base", base, *option, "--out", tmp_path / f"out{number}", requests)
        assert ended.returncode == 0
        assert (told in ended.stderr) == (not option)
