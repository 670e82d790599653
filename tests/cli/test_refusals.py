"""A run that cannot start: one line on stderr, the right exit status, and no traceback."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cli.command import (
    SAMPLE,
    Row,
    assert_refused,
    caraserve_command,
    read_rows,
    user_environment,
    write_rows,
)
from tests.cli.conftest import Caraserve

JOB = ("run", "--base", SAMPLE / "base", "--dtype", "float32")


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "requests.jsonl", [{"id": "a", "prompt": "a", "max_tokens": 1}])


@pytest.mark.parametrize("content", [b"", b"\n \n\n"], ids=["empty", "blank lines"])
def test_an_empty_file_is_nothing_to_do(caraserve: Caraserve, tmp_path: Path, content: bytes) -> None:
    requests = tmp_path / "r.jsonl"
    requests.write_bytes(content)
    ended = caraserve(*JOB, "--out", tmp_path / "out", requests)
    assert ended.returncode == 0
    assert ended.stderr.splitlines()[-1] == "Nothing to do: the input has no rows."
    assert ended.stdout.startswith("0 answered, 0 failed")
    ended = caraserve(*JOB, "--out", tmp_path / "quiet", requests, "-q")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", ""), "errors only"
    assert json.loads((tmp_path / "out" / "report.json").read_text())["requests"]["answered"] == 0


@pytest.mark.parametrize(
    ("name", "fragment"),
    [
        ("missing.jsonl", "does not exist"),
        ("folder", "is a folder"),
        ("table.parquet", "does not exist"),
        ("table.xlsx", "unknown kind '.xlsx'"),
        ("no.gz/requests.jsonl", "does not exist"),
    ],
)
def test_requests_that_cannot_be_read(caraserve: Caraserve, tmp_path: Path, name: str, fragment: str) -> None:
    (tmp_path / "folder").mkdir()
    assert_refused(caraserve(*JOB, "--out", tmp_path / "out", tmp_path / name), 1, name, fragment)
    assert not (tmp_path / "out").exists(), "nothing is left behind"


def test_a_requests_file_is_looked_for_before_all_else(caraserve: Caraserve) -> None:
    ended = caraserve("run", "nosuch.jsonl")
    assert_refused(ended, 1, "requests file 'nosuch.jsonl' does not exist")


def test_what_only_benchmarks_do_is_no_choice(caraserve: Caraserve, tmp_path: Path, requests: Path) -> None:
    told = caraserve("run", "--help").stdout
    assert "on-demand-blocking" in told
    assert "cached" not in told
    ended = caraserve(*JOB, "--cold-start", "cached", "--out", tmp_path / "out", requests)
    assert_refused(ended, 2, "--cold-start: 'cached'", "`caraserve bench`")


@pytest.mark.parametrize("given", [True, False])
def test_rows_name_adapters_and_there_are_none(
    caraserve: Caraserve, tmp_path: Path, requests: Path, given: bool
) -> None:
    """It is said once, beside each row's own message; of a folder that was named, also if no row asks."""
    (tmp_path / "empty").mkdir()
    folders = ("--adapters", tmp_path / "empty") if given else ()
    rows = [{"prompt": "a", "adapter": "upper"}] * 2
    ended = caraserve(*JOB, *folders, "--out", tmp_path / "out", write_rows(tmp_path / "r.jsonl", rows))
    assert ended.returncode == 3
    no_adapter = (
        f"--adapters: no adapter, a folder with an adapter_config.json, is below '{tmp_path / 'empty'}'"
    )
    fragment = no_adapter if given else "give their folder with --adapters"
    assert ended.stderr.count(fragment) == 1
    rows = [{"prompt": "a", "max_tokens": 1}]
    ended = caraserve(*JOB, *folders, "--out", tmp_path / "base", write_rows(tmp_path / "r.jsonl", rows))
    assert ended.returncode == 0
    assert ended.stderr.count("--adapters") == ended.stderr.count(no_adapter) == given


def test_no_row_names_one_of_the_adapters(caraserve: Caraserve, tmp_path: Path) -> None:
    """A column that was forgotten, rather than what somebody wants."""
    folder = shutil.copytree(SAMPLE / "adapters" / "upper", tmp_path / "loras" / "upper").parent
    told = (
        "No request names the one adapter below --adapters; the base alone answered. A row names its own by"
    )
    for name, row, is_told, options in (
        ("none", {}, True, ()),
        ("quiet", {}, False, ("-q",)),
        ("one", {"adapter": "upper"}, False, ()),
        ("unknown", {"adapter": "uper"}, False, ()),
    ):
        rows = [{"prompt": "a", "max_tokens": 1}, {"prompt": "b", "max_tokens": 1, **row}]
        requests = write_rows(tmp_path / f"{name}.jsonl", rows)
        ended = caraserve(*JOB, "--adapters", folder, "--out", tmp_path / name, *options, requests)
        assert (told in ended.stderr) is is_told, name


def test_a_file_that_is_cut_off_is_answered_as_far_as_it_goes(caraserve: Caraserve, tmp_path: Path) -> None:
    """And the mended file is finished with --resume."""
    lines = "".join(json.dumps({"id": f"{i}", "prompt": "a", "max_tokens": 1}) + "\n" for i in range(2000))
    whole, requests = gzip.compress(lines.encode()), tmp_path / "r.jsonl.gz"
    requests.write_bytes(whole[: len(whole) // 2])
    ended = caraserve(*JOB, "--out", tmp_path / "out", requests)
    assert ended.returncode == 1
    message = ended.stderr.splitlines()[-1]
    assert message.startswith("caraserve: requests file ")
    assert "beyond line" in message
    assert "--resume" in message
    num_answered = len(read_rows(tmp_path / "out" / "outputs.jsonl"))
    assert 0 < num_answered < 2000
    requests.write_bytes(whole)
    assert caraserve(*JOB, "--out", tmp_path / "out", "--resume", requests).returncode == 0
    answers = read_rows(tmp_path / "out" / "outputs.jsonl")
    assert [answer["id"] for answer in answers[:num_answered]] == [str(i) for i in range(num_answered)]
    assert {answer["id"] for answer in answers} == {str(i) for i in range(2000)}
    assert len(answers) == 2000


@pytest.mark.parametrize("out", ["a file", "below a file", "/proc/caraserve", "/proc/self/x/y"])
def test_an_output_folder_that_cannot_be_made(
    caraserve: Caraserve, tmp_path: Path, requests: Path, out: str
) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    folder = {"a file": file, "below a file": file / "out"}.get(out, Path(out))
    assert_refused(caraserve(*JOB, "--out", folder, requests), 1, str(folder))
    assert file.read_text() == "mine"


def test_the_output_folder_of_another_run(caraserve: Caraserve, tmp_path: Path, requests: Path) -> None:
    out = tmp_path / "out"
    assert caraserve(*JOB, "--out", out, requests).returncode == 0
    before = (out / "outputs.jsonl").read_bytes()
    assert_refused(caraserve(*JOB, "--out", out, requests), 1, str(out), "not empty", "--resume")
    other = write_rows(tmp_path / "other.jsonl", [{"prompt": "b", "max_tokens": 1}])
    ended = caraserve(*JOB, "--out", out, "--resume", other)
    assert_refused(ended, 1, str(out), "requests was", "requests.jsonl", "now is", "other.jsonl")
    ended = caraserve(*JOB, "--out", out, "--resume", "--seed", "5", "--max-tokens", "9", requests)
    assert_refused(ended, 1, "seed was 0, now is 5", "default_max_tokens was 64, now is 9")
    assert (out / "outputs.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("file", "row"),
    [("outputs.jsonl", {"id": "b"}), ("errors.jsonl", {"line": 7, "id": "b"})],
    ids=["answer", "error"],
)
def test_a_row_that_somebody_added(
    caraserve: Caraserve, tmp_path: Path, requests: Path, file: str, row: Row
) -> None:
    out = tmp_path / "out"
    assert caraserve(*JOB, "--out", out, requests).returncode == 0
    with (out / file).open("a") as rows:
        rows.write(json.dumps(row) + "\n")
    ended = caraserve(*JOB, "--out", out, "--resume", requests)
    assert_refused(ended, 1, "a row that caraserve did not write", "choose another --out")


@pytest.mark.parametrize("typed", ["./base", "base", "link"])
def test_going_on_from_another_folder(
    caraserve: Caraserve, tmp_path: Path, requests: Path, monkeypatch: pytest.MonkeyPatch, typed: str
) -> None:
    """A base that is a folder is the same one however it is named."""
    (tmp_path / "base").symlink_to(SAMPLE / "base")
    (tmp_path / "link").symlink_to("base")
    monkeypatch.chdir(tmp_path)
    assert caraserve("run", "--base", typed, "--out", "out", requests).returncode == 0
    kept = json.loads((tmp_path / "out" / "run.json").read_text())
    assert kept["base"] == str((SAMPLE / "base").resolve())
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    job = ("run", "--out", "../out", "--resume", requests)
    assert caraserve(*job, "--base", f"../{typed}").returncode == 0
    assert caraserve(*job, "--base", SAMPLE / "base").returncode == 0


def test_a_run_of_an_earlier_version(
    caraserve: Caraserve, tmp_path: Path, requests: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its run.json has the base as it was typed, and no LoRA kernel."""
    (tmp_path / "base").symlink_to(SAMPLE / "base")
    monkeypatch.chdir(tmp_path)
    job = ("run", "--out", tmp_path / "out", requests)
    assert caraserve(*job, "--base", "base").returncode == 0
    run_json = tmp_path / "out" / "run.json"
    kept = json.loads(run_json.read_text())
    assert kept.pop("lora_kernel") == "mbgmv"
    run_json.write_text(json.dumps(kept | {"base": "base"}))
    for base in ("base", "./base", SAMPLE / "base"):
        assert caraserve(*job, "--resume", "--base", base).returncode == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    ended = caraserve(*job, "--resume", "--base", "../base")
    assert_refused(
        ended, 1, 'base was "base", now is "', "resume with the same ones, or choose another --out"
    )
    assert "lora_kernel" not in ended.stderr


def test_a_folder_of_something_else(caraserve: Caraserve, tmp_path: Path, requests: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    assert_refused(caraserve(*JOB, "--out", tmp_path, requests), 1, str(tmp_path), "not empty")
    assert_refused(caraserve(*JOB, "--out", tmp_path, "--resume", requests), 1, "not a run's folder")


@pytest.mark.parametrize(
    ("base", "fragment"),
    [
        ("./nowhere", "'./nowhere' does not exist"),
        ("lama2-7b", "did you mean llama2-7b"),
        ("nobody/nothing", "HF_HUB_OFFLINE"),
    ],
)
def test_a_base_that_is_not_there(
    caraserve: Caraserve, tmp_path: Path, requests: Path, base: str, fragment: str
) -> None:
    ended = caraserve("run", "--base", base, "--out", tmp_path / "out", requests)
    assert_refused(ended, 1, "base model", fragment)


@pytest.mark.parametrize(
    ("fields", "fragments"),
    [
        ({"model_type": "mamba"}, ("model_type", "mamba")),
        ({"hidden_act": "gelu"}, ("hidden_act", "gelu")),
        ({"quantization_config": {"bits": 4}}, ("quantization_config",)),
        ({"hidden_size": -1}, ("hidden_size",)),
        ({"num_hidden_layers": 7}, ("the weights lack",)),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_base_that_cannot_be_honoured(
    caraserve: Caraserve,
    tmp_path: Path,
    requests: Path,
    fields: dict[str, object],
    fragments: tuple[str, ...],
) -> None:
    base = sample_base(tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, **fields}))
    ended = caraserve("run", "--base", base, "--out", tmp_path / "out", requests)
    assert_refused(ended, 1, str(base), *fragments)


@pytest.mark.parametrize("damage", ["no config", "no weights", "cut weights", "broken tokenizer"])
def test_a_base_that_is_damaged(caraserve: Caraserve, tmp_path: Path, requests: Path, damage: str) -> None:
    base = sample_base(tmp_path / "base")
    if damage == "no config":
        (base / "config.json").unlink()
    elif damage == "no weights":
        (base / "model.safetensors").unlink()
    elif damage == "cut weights":
        (base / "model.safetensors").write_bytes((SAMPLE / "base" / "model.safetensors").read_bytes()[:5000])
    else:
        (base / "tokenizer.json").write_text("{}")
    ended = caraserve("run", "--base", base, "--out", tmp_path / "out", requests)
    assert_refused(ended, 1, str(base))


def sample_base(folder: Path) -> Path:
    """A copy of the sample's base that may be damaged."""
    return shutil.copytree(SAMPLE / "base", folder)


def test_adapter_folders_that_cannot_be_used(caraserve: Caraserve, tmp_path: Path, requests: Path) -> None:
    ended = caraserve(*JOB, "--adapters", tmp_path / "none", "--out", tmp_path / "out", requests)
    assert_refused(ended, 2, "--adapters", str(tmp_path / "none"), "does not exist")
    copy = shutil.copytree(SAMPLE / "adapters", tmp_path / "copy")
    twice = ("--adapters", SAMPLE / "adapters", "--adapters", copy)
    ended = caraserve(*JOB, *twice, "--out", tmp_path / "out", requests)
    assert_refused(ended, 2, "--adapters", "belongs to both")


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        ("--warp 9", ("--warp",)),
        ("--max-tokens 0", ("--max-tokens", "at least 1, got 0")),
        ("--max-tokens many", ("--max-tokens", "integer")),
        ("--temperature -1", ("--temperature", "of at least 0")),
        ("--temperature nan", ("--temperature", "of at least 0, got nan")),
        ("--top-p 0", ("--top-p", "above 0 and at most 1")),
        ("--top-k -1", ("--top-k",)),
        ("--min-p 1.5", ("--min-p",)),
        ("--repetition-penalty 0", ("--repetition-penalty",)),
        ("--presence-penalty 2.5", ("--presence-penalty",)),
        ("--frequency-penalty inf", ("--frequency-penalty", "got inf")),
        ("--logprobs 21", ("--logprobs", "from 0 to 20")),
        ("--stop-token-ids -1", ("--stop-token-ids",)),
        ("--deadline-ms 0", ("--deadline-ms", "above 0")),
        ("--ttft-slo-ms -1", ("--ttft-slo-ms",)),
        ("--tpot-slo-ms 0", ("--tpot-slo-ms",)),
        ("--seed -1", ("--seed",)),
        ("--limit 0", ("--limit",)),
        ("--limit 9223372036854775808", ("--limit", "is too large; the largest is 9223372036854775807")),
        ("--max-tokens 99999999999999999999", ("--max-tokens", "is too large")),
        ("--logprobs 99999999999999999999", ("--logprobs", "is too large")),
        ("--max-batch-tokens 99999999999999999999", ("--max-batch-tokens", "is too large")),
        ("--stop-token-ids 99999999999999999999", ("--stop-token-ids", "is too large")),
        ("--adapter a\udcff", ("--adapter", "UTF-8")),
        ("--stop a\udcff", ("--stop", "UTF-8")),
        ("--retry-errors", ("--retry-errors", "--resume")),
        ("--dtype float8", ("Invalid value for '--dtype': 'float8' is not one of 'auto', 'float32'",)),
        ("--device tpu", ("--device", "tpu")),
        ("--device cpu --dtype float16", ("--dtype", "float16")),
        ("--lora-kernel sgmv", ("'--lora-kernel': 'sgmv' is not one of 'mbgmv', 'bgmv'",)),
        ("--lora-kernel bgmv --device cpu", ("--lora-kernel: 'bgmv'", "on the CPU", "--device cuda")),
        ("--weights good", ("--weights", "good")),
        ("--kv-memory lots", ("--kv-memory", "lots", "4.3GB")),
        ("--kv-memory 3", ("--kv-memory", "no unit")),
        ("--kv-memory 1KB", ("--kv-memory", "one block")),
        ("--adapter-memory 0GB", ("--adapter-memory",)),
        ("--host-adapter-memory x", ("--host-adapter-memory",)),
        ("--max-running 0", ("--max-running",)),
        ("--max-running 4096", ("--max-batch-tokens", "less than --max-running 4096")),
        ("--prefill-chunk-tokens 0", ("--prefill-chunk-tokens",)),
        ("--kv-block-tokens -2", ("--kv-block-tokens",)),
    ],
)
def test_options_that_are_wrong(
    caraserve: Caraserve, tmp_path: Path, requests: Path, options: str, fragments: tuple[str, ...]
) -> None:
    ended = caraserve(*JOB, "--out", tmp_path / "out", *options.split(), requests)
    assert_refused(ended, 2, *fragments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["--help", "run --help", "bench --list"])
def test_a_reader_that_has_seen_enough(command: str) -> None:
    """`caraserve … | head -1`: silence, and the exit status of a program that SIGPIPE has ended."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    with open(write_end, "w") as closed_pipe:
        ended = subprocess.run(
            caraserve_command(*command.split()),
            stdout=closed_pipe,
            stderr=subprocess.PIPE,
            text=True,
            env=user_environment(),
            check=False,
        )
    assert (ended.returncode, ended.stderr) == (141, "")


def test_a_full_disk_under_stdout() -> None:
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            caraserve_command("bench", "--list"),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=user_environment(),
            check=False,
        )
    assert ended.returncode == 1
    assert ended.stderr == "caraserve: cannot go on: No space left on device\n"


@pytest.mark.parametrize("name", ["--base", "--adapters", "--out", "--adapter", "--stop", "REQUESTS"])
def test_an_empty_name_is_not_the_current_folder(
    caraserve: Caraserve, tmp_path: Path, requests: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As an unset shell variable gives it. In the current folder there is a base."""
    monkeypatch.chdir(SAMPLE / "base")
    given = {"--base": SAMPLE / "base", "--out": tmp_path / "out", "REQUESTS": requests, name: ""}
    positional = given.pop("REQUESTS")
    options = [each for option in given.items() for each in option]
    assert_refused(caraserve("run", *options, positional), 2, f"{name}: it is empty")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (("bake",), "bake"),
        (("bench", "a", "b"), "extra argument"),
        (("run", str(SAMPLE / "requests.jsonl")), "--base: missing"),
        (("run", "--base", "llama2-7b"), "REQUESTS: missing"),
        (("run", "--base"), "--base' requires an argument; see caraserve run --help"),
        (("--nonsense",), "; see caraserve --help"),
    ],
)
def test_command_lines_that_make_no_sense(
    caraserve: Caraserve, arguments: tuple[str, ...], fragment: str
) -> None:
    assert_refused(caraserve(*arguments), 2, fragment)
