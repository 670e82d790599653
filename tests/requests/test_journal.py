"""The output folder: whose it is, what is in it, and going on after any end."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caraserve_cli.errors import OutputError
from caraserve_cli.requests.journal import Journal

MANIFEST = {"base": "tiny", "dtype": "float32"}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "nested" / "out"


def run(out: Path, *ids: str, resume: bool = False, retry_errors: bool = False) -> None:
    """A run that answers `ids`, but those it finds answered."""
    with Journal.open(out, MANIFEST, resume=resume, retry_errors=retry_errors) as journal:
        for request_id in ids:
            if not journal.is_answered(request_id):
                journal.write_answer({"id": request_id, "text": f"answer to {request_id}"})
                journal.flush()


def ids_in(out: Path) -> list[str]:
    return [orjson.loads(line)["id"] for line in (out / "outputs.jsonl").read_bytes().splitlines()]


def refusal(out: Path, manifest: dict[str, object] | None = None, *, resume: bool = False) -> str:
    before = {path.name: path.read_bytes() for path in out.iterdir()} if out.is_dir() else {}
    with pytest.raises(OutputError) as caught:
        Journal.open(out, manifest or dict(MANIFEST), resume=resume)
    message = str(caught.value)
    assert "\n" not in message
    if out.is_dir():
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    return message


def test_what_a_run_leaves_behind(out: Path) -> None:
    with Journal.open(out, MANIFEST) as journal:
        journal.write_answer({"id": "a", "text": "x"})
        journal.write_error(2, None, "invalid_json", "bad")
        journal.write_error(3, "c", "duplicate_id", "twice")
    assert sorted(path.name for path in out.iterdir()) == ["errors.jsonl", "outputs.jsonl", "run.json"]
    assert (out / "outputs.jsonl").read_bytes() == b'{"id":"a","text":"x"}\n'
    assert (out / "errors.jsonl").read_bytes() == (
        b'{"line":2,"id":null,"code":"invalid_json","message":"bad"}\n'
        b'{"line":3,"id":"c","code":"duplicate_id","message":"twice"}\n'
    )
    assert orjson.loads((out / "run.json").read_bytes()) == MANIFEST


def test_a_resumed_run_knows_what_was_done(out: Path) -> None:
    with Journal.open(out, MANIFEST) as journal:
        journal.write_answer({"id": "a"})
        journal.write_error(2, "b", "invalid_request", "bad")
        journal.write_error(3, None, "invalid_json", "bad")
        assert not journal.is_answered("a")
    with Journal.open(out, MANIFEST, resume=True) as journal:
        assert [journal.is_answered(request_id) for request_id in ("a", "b", "c")] == [True, False, False]
        assert journal.is_rejected(2, "b")
        assert journal.is_rejected(3, None)
        assert not journal.is_rejected(2, None)
        assert not journal.is_rejected(3, "b")
        assert [journal.is_rejected_id(request_id) for request_id in ("a", "b", "")] == [False, True, False]
        assert (journal.num_answers, journal.num_errors) == (1, 2)
        journal.write_answer({"id": "c"})
        assert [row["id"] for row in journal.answers()] == ["a", "c"]
        assert [row["line"] for row in journal.errors()] == [2, 3]
        assert (journal.num_answers, journal.num_errors) == (2, 2)


def test_retry_errors_forgets_them_and_keeps_the_answers(out: Path) -> None:
    with Journal.open(out, MANIFEST) as journal:
        journal.write_answer({"id": "a"})
        journal.write_error(2, "b", "invalid_request", "bad")
    with Journal.open(out, MANIFEST, resume=True, retry_errors=True) as journal:
        assert journal.is_answered("a")
        assert not journal.is_rejected(2, "b")
        assert (journal.num_answers, journal.num_errors) == (1, 0)
    assert (out / "errors.jsonl").read_bytes() == b""
    before = b'{"line":2,"id":"b","code":"invalid_request","message":"bad"}\n'
    assert (out / "errors.before-retry.jsonl").read_bytes() == before
    Journal.open(out, MANIFEST, resume=True, retry_errors=True).close()
    assert (out / "errors.before-retry.jsonl").read_bytes() == before, "nothing was rejected since"


def test_a_duplicate_does_not_silence_the_row_that_has_the_id(out: Path) -> None:
    with Journal.open(out, MANIFEST) as journal:
        journal.write_error(9, "a", "duplicate_id", "twice")
    with Journal.open(out, MANIFEST, resume=True) as journal:
        assert not journal.is_rejected(3, "a")
        assert journal.is_rejected(9, "a")
        assert not journal.is_rejected_id("a")


@pytest.mark.parametrize("resume", [False, True])
def test_a_missing_or_empty_folder_is_fine(out: Path, resume: bool) -> None:
    run(out, "a", resume=resume)
    empty = out.parent / "empty"
    empty.mkdir()
    run(empty, "a", resume=resume)
    assert ids_in(out) == ids_in(empty) == ["a"]


def test_a_finished_folder_can_be_resumed(out: Path) -> None:
    run(out, "a", "b")
    (out / "report.json").write_text("{}")
    run(out, "a", "b", resume=True)
    assert ids_in(out) == ["a", "b"]


def test_a_folder_with_rows_is_refused_without_resume(out: Path) -> None:
    run(out, "a")
    assert refusal(out) == f"'{out}' is not empty; continue its run with --resume, or choose another --out"


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("left", [(), ("run.json.tmp",), ("outputs.jsonl", "errors.jsonl")])
def test_a_run_that_died_while_starting_is_no_obstacle(
    out: Path, resume: bool, left: tuple[str, ...]
) -> None:
    out.mkdir(parents=True)
    for name in left:
        (out / name).write_bytes(b"{" if name == "run.json.tmp" else b"")
    run(out, "a", resume=resume)
    assert ids_in(out) == ["a"]
    assert orjson.loads((out / "run.json").read_bytes()) == MANIFEST


def test_a_run_without_rows_is_no_obstacle_to_another(out: Path) -> None:
    Journal.open(out, {"base": "other"}).close()
    run(out, "a")
    assert orjson.loads((out / "run.json").read_bytes()) == MANIFEST


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_of_something_else_is_left_alone(out: Path, resume: bool) -> None:
    out.mkdir(parents=True)
    (out / "thesis.tex").write_text("do not touch")
    message = refusal(out, resume=resume)
    assert "is not empty and holds no run.json: not a run's folder; choose another --out" in message


def test_a_refusal_tells_the_command_that_goes_on(out: Path) -> None:
    command = "cd /jobs && caraserve run --resume --out x r.jsonl"
    with Journal.open(out, MANIFEST, command=command) as journal:
        journal.write_answer({"id": "a"})
    assert refusal(out) == f"'{out}' is not empty; continue its run with `{command}`, or choose another --out"
    told = refusal(out, {"base": "large"}, resume=True)
    assert told.endswith(
        f"resume with the same ones, or choose another --out; the command that goes on with it: `{command}`"
    )
    Journal.open(out, MANIFEST, resume=True, command="caraserve run --resume").close()
    assert refusal(out).count(command) == 1, "that of the first session"


def test_rows_without_a_manifest_are_not_ours(out: Path) -> None:
    out.mkdir(parents=True)
    (out / "outputs.jsonl").write_bytes(b'{"id":"a"}\n')
    assert "holds no run.json" in refusal(out, resume=True)


def test_a_folder_of_another_run_is_refused(out: Path) -> None:
    run(out, "a")
    message = refusal(out, {"base": "large", "dtype": "float32"}, resume=True)
    assert 'base was "tiny", now is "large"' in message
    assert "dtype" not in message


def test_a_file_or_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert refusal(file) == f"'{file}' is a file; choose another --out"
    assert refusal(file / "out") == f"output folder '{file}/out' cannot be made: Not a directory"
    assert "cannot be made" in refusal(Path("/proc/caraserve-out"))


def test_two_runs_cannot_have_one_folder(out: Path) -> None:
    with Journal.open(out, MANIFEST) as journal:
        assert "another caraserve run is using" in refusal(out)
        journal.write_answer({"id": "a"})
        journal.flush()
        assert "another caraserve run is using" in refusal(out, resume=True)
    run(out, "b", resume=True)
    assert ids_in(out) == ["a", "b"]


def test_a_refused_folder_is_not_kept_locked(out: Path) -> None:
    run(out, "a")
    with pytest.raises(OutputError) as kept:  # keeps the traceback, and with it every object of the call
        Journal.open(out, {"base": "large"}, resume=True)
    run(out, "b", resume=True)
    assert ids_in(out) == ["a", "b"]
    assert "other settings" in str(kept.value)


def test_damage_in_the_middle_is_named(out: Path) -> None:
    run(out, "a")
    with (out / "errors.jsonl").open("ab") as file:
        file.write(b'not json\n{"line":1,"id":null,"code":"x","message":"y"}\n')
    assert f"'{out}/errors.jsonl' is damaged at line 1" in refusal(out, resume=True)


@pytest.mark.parametrize(
    ("name", "row"), [("outputs.jsonl", b'{"x":1}\n'), ("errors.jsonl", b'{"id":"a"}\n')]
)
def test_rows_of_another_kind_are_named(out: Path, name: str, row: bytes) -> None:
    run(out, "a")
    with (out / name).open("ab") as file:
        file.write(row)
    line = 2 if name == "outputs.jsonl" else 1
    assert f"'{out}/{name}' line {line} was not written by caraserve" in refusal(out, resume=True)


IDS = [f"request-{number}" for number in range(12)]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 700), min_size=1, max_size=4))
def test_cut_at_any_byte_and_resumed_every_id_is_answered_once(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int]
) -> None:
    out = tmp_path_factory.mktemp("cut")
    run(out, *IDS)
    unbroken = (out / "outputs.jsonl").read_bytes()
    for cut in cuts:
        with (out / "outputs.jsonl").open("r+b") as file:
            file.truncate(min(cut, len(unbroken)))
        run(out, *IDS, resume=True)
        assert (out / "outputs.jsonl").read_bytes() == unbroken


KILLED_RUN = """
import sys
from pathlib import Path
from caraserve_cli.requests.journal import Journal
journal = Journal.open(Path(sys.argv[1]), {"base": "tiny", "dtype": "float32"}, resume=True)
for number in range(100_000):
    if not journal.is_answered(f"r{number}"):
        journal.write_answer({"id": f"r{number}", "text": "x" * 200})
        journal.flush()
        print(number, flush=True)
"""


def test_every_flushed_row_survives_kill_9(out: Path) -> None:
    num_seen = 0
    for _ in range(3):
        command = [sys.executable, "-c", KILLED_RUN, str(out)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            numbers = [int(process.stdout.readline()) for _ in range(50)]
            os.kill(process.pid, signal.SIGKILL)
            numbers += [int(line) for line in process.stdout if line.endswith("\n")]
        assert process.returncode == -signal.SIGKILL
        assert numbers[0] >= num_seen
        num_seen = numbers[-1] + 1
    with Journal.open(out, MANIFEST, resume=True) as journal:
        ids = [row["id"] for row in journal.answers()]
    assert ids == [f"r{number}" for number in range(len(ids))]
    assert len(ids) >= num_seen
