"""Rows and adapters that cannot be answered: one clear line each, and every good row answered."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.adapters.bad_adapters import write_bad_adapters
from tests.adapters.bases import tiny_llama
from tests.adapters.peft_variants import VARIANTS, write_variant
from tests.cli.command import SAMPLE, Row, read_rows, write_rows
from tests.cli.conftest import Caraserve

SAMPLE_ROWS = read_rows(SAMPLE / "requests.jsonl")


@dataclass(frozen=True)
class BadLine:
    """A line as it stands in the file, and what must be said of it; `id` is None where it cannot be known."""

    line: bytes
    code: str
    fragments: Sequence[str]
    id: str | None = None


def bad(code: str, *fragments: str, **row: object) -> BadLine:
    """A line that is JSON, with an id of its own unless it is given one, so that its error can name it."""
    row = {"id": f"bad {fragments[-1]}", "prompt": "a", **row}
    row = {key: value for key, value in row.items() if value != "left out"}
    known_id = row["id"] if isinstance(row["id"], str) and row["id"] else None
    return BadLine(json.dumps(row).encode(), code, fragments, known_id)


def text(line: bytes, code: str, *fragments: str) -> BadLine:
    return BadLine(line, code, fragments)


INVALID = "invalid_request"
BAD_LINES = (
    # No JSON, or no object
    text(b'{"id": "cut", "prompt": "a"', "invalid_json", "not valid JSON at character 28"),
    text(b"hello", "invalid_json", "character 1"),
    text(b'{"prompt": "a"} {"prompt": "b"}', "invalid_json"),
    text(b'{"prompt": "a", "temperature": NaN}', "invalid_json"),
    text(b'{"prompt": "a", "temperature": Infinity}', "invalid_json"),
    text(b'{"prompt": "\\ud800"}', "invalid_json"),
    text(b"[" * 100_000, "invalid_json"),
    text(b'["prompt"]', INVALID, "must be a JSON object, got a list"),
    text(b"7", INVALID, "must be a JSON object, got 7"),
    text(b'{"prompt": "caf\xe9"}', "invalid_utf8", "byte 16"),
    text(b'{"prompt": "' + b"a" * 10_000_000 + b'"}', "line_too_long", "longer than 8 MiB"),
    # Keys
    bad(INVALID, 'unknown key "promt"; did you mean "prompt"?', promt="a"),
    bad(INVALID, "id must be a non-empty string", '(write "7")', id=7),
    bad(INVALID, "id must be a non-empty string", id=""),
    bad(INVALID, "exactly one of prompt, messages, prompt_token_ids", prompt="left out"),
    bad(INVALID, "got prompt and prompt_token_ids", prompt_token_ids=[1]),
    bad(INVALID, "prompt is empty", prompt=""),
    bad(INVALID, "prompt must be a string, got 7", prompt=7),
    bad(INVALID, "prompt_token_ids is empty", prompt="left out", prompt_token_ids=[]),
    bad(INVALID, "prompt_token_ids[1]", "got 1.5", prompt="left out", prompt_token_ids=[1, 1.5]),
    bad(INVALID, "prompt_token_ids[0]", "got -1", prompt="left out", prompt_token_ids=[-1]),
    bad(INVALID, "messages is empty", prompt="left out", messages=[]),
    bad(INVALID, "messages[0] has no content", prompt="left out", messages=[{"role": "user"}]),
    bad(INVALID, "adapter must be a string, got 3", adapter=3),
    bad(INVALID, "metadata must be an object", metadata="a"),
    # Numbers
    bad(INVALID, "max_tokens must be an integer of at least 1, got 0", max_tokens=0),
    bad(INVALID, "max_tokens", "got 1.0", max_tokens=1.0),
    bad(INVALID, "max_tokens", "got true", max_tokens=True),
    bad(INVALID, 'got "5"', max_tokens="5"),
    bad(INVALID, "temperature", "of at least 0, got -0.1", temperature=-0.1),
    bad(INVALID, "top_p must be a number above 0 and at most 1, got 0", top_p=0),
    bad(INVALID, "top_p", "got 1.5", top_p=1.5),
    bad(INVALID, "top_k", "got -1", top_k=-1),
    bad(INVALID, "min_p", "got 2", min_p=2),
    bad(INVALID, "seed", "got -1", seed=-1),
    bad(INVALID, "repetition_penalty", "above 0, got 0", repetition_penalty=0),
    bad(INVALID, "presence_penalty must be a number from -2 to 2, got 3", presence_penalty=3),
    bad(INVALID, "frequency_penalty", "got -2.5", frequency_penalty=-2.5),
    bad(INVALID, "logprobs", "from 0 to 20, got 21", logprobs=21),
    bad(INVALID, "arrival_ms", "got -1", arrival_ms=-1),
    bad(INVALID, "deadline_ms", "above 0, got 0", deadline_ms=0),
    bad(INVALID, "ttft_slo_ms", "got -3", ttft_slo_ms=-3),
    bad(INVALID, "tpot_slo_ms", 'got "50"', tpot_slo_ms="50"),
    bad(INVALID, "stop must be a non-empty string", stop=[""]),
    bad(INVALID, "ignore_eos must be true or false, got 1", ignore_eos=1),
    # What only the base and the adapters can tell
    bad("duplicate_id", "only the first one with an id is answered", id=SAMPLE_ROWS[0]["id"]),
    bad("unknown_adapter", "'uper'", "did you mean 'upper'?", adapter="uper"),
    bad("unknown_adapter", "none of the --adapters folders", id="far", adapter="42"),
    bad("unknown_adapter", "aaa…' is in none", id="long", adapter="a" * 5000),
    bad("token_out_of_range", "token id 259", "vocabulary of 259", prompt="left out", prompt_token_ids=[259]),
    bad("token_out_of_range", "stop_token_ids", "4000", stop_token_ids=[4000]),
    bad("prompt_too_long", "the model's context is 512", prompt="a" * 600),
    bad("prompt_too_long", "has 512 tokens", prompt="left out", prompt_token_ids=[65] * 512),
)


def test_the_corpus_of_bad_rows(caraserve: Caraserve, tmp_path: Path) -> None:
    good = SAMPLE_ROWS[: len(BAD_LINES) + 1]
    lines = [json.dumps(good[0]).encode()]
    for bad_line, row in zip(BAD_LINES, good[1:], strict=True):
        lines += [bad_line.line, json.dumps(row).encode()]
    requests = tmp_path / "r.jsonl"
    requests.write_bytes(b"\n".join(lines))
    ended = caraserve(
        *("run", "--base", SAMPLE / "base", "--adapters", SAMPLE / "adapters", "--dtype", "float32"),
        *("--out", tmp_path / "out", requests),
    )
    assert ended.returncode == 3
    assert "Traceback" not in ended.stderr
    answers = read_rows(tmp_path / "out" / "outputs.jsonl")
    assert sorted(answer["id"] for answer in answers) == sorted(row["id"] for row in good)
    num_right = sum(answer["text"].strip() == answer["metadata"]["expected"] for answer in answers)
    assert num_right >= 0.9 * len(answers), "the answers are those of good rows"
    errors = {error["line"]: error for error in read_rows(tmp_path / "out" / "errors.jsonl")}
    assert errors.keys() == {2 * number + 2 for number in range(len(BAD_LINES))}
    wrong = [
        (error, bad_line.code, bad_line.fragments)
        for bad_line, (_, error) in zip(BAD_LINES, sorted(errors.items()), strict=True)
        if not tells(error, bad_line)
    ]
    assert wrong == []
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["requests"]["failed"] == len(BAD_LINES)
    assert sum(report["requests"]["failed_by_code"].values()) == len(BAD_LINES)


def tells(error: Row, bad_line: BadLine) -> bool:
    """Whether an error says all that it must, in one line of bearable length."""
    message = error["message"]
    return (
        list(error) == ["line", "id", "code", "message"]
        and error["code"] == bad_line.code
        and error["id"] == bad_line.id
        and all(fragment in message for fragment in bad_line.fragments)
        and "\n" not in message
        and len(message) < 300
    )


@pytest.fixture(scope="module")
def tiny_job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder with a base without tokenizer, every bad adapter and one good one; what each refusal says."""
    folder = tmp_path_factory.mktemp("job")
    tiny_llama().save_pretrained(folder / "base")
    expected = write_bad_adapters(folder / "bad", tiny_llama)
    write_variant(folder / "good", VARIANTS[0], tiny_llama, seed=1)
    return folder, expected


def test_every_bad_adapter_costs_only_its_own_requests(
    caraserve: Caraserve, tmp_path: Path, tiny_job: tuple[Path, dict[str, str]]
) -> None:
    folder, expected = tiny_job
    rows: list[Row] = []
    for name in expected:
        rows.append({"id": name, "adapter": name, "prompt_token_ids": [3, 4], "max_tokens": 2})
        rows.append({"id": f"{name}-again", "adapter": name, "prompt_token_ids": [5], "max_tokens": 2})
        good = None if len(rows) % 3 else VARIANTS[0].name
        rows.append({"id": f"good {name}", "adapter": good, "prompt_token_ids": [3], "max_tokens": 2})
    requests = write_rows(tmp_path / "r.jsonl", [*rows, {"id": "text", "prompt": "a"}])
    job = ("run", "--base", folder / "base", "--adapters", folder / "bad", "--adapters", folder / "good")
    ended = caraserve(*job, "--out", tmp_path / "out", requests)
    assert ended.returncode == 3
    assert "Traceback" not in ended.stderr
    answered = {answer["id"] for answer in read_rows(tmp_path / "out" / "outputs.jsonl")}
    assert answered == {f"good {name}" for name in expected}
    errors = {error["id"]: error for error in read_rows(tmp_path / "out" / "errors.jsonl")}
    assert errors.pop("text")["code"] == "no_tokenizer"
    assert len(errors) == 2 * len(expected)
    for name, fragment in expected.items():
        for error in (errors[name], errors[f"{name}-again"]):
            assert error["code"] == "adapter_refused"
            assert error["message"].startswith(f"adapter '{name}': ")
            assert fragment in error["message"]
            assert "\n" not in error["message"]
    dry = caraserve(*job, "--dry-run", requests)
    assert dry.returncode == 3
    told = [json.loads(line) for line in dry.stdout.splitlines()]
    assert {row["id"]: row for row in told} == {**errors, "text": told[-1]}, "a dry run says the same"


def test_what_does_not_fit_the_memory_given(
    caraserve: Caraserve, tmp_path: Path, tiny_job: tuple[Path, dict[str, str]]
) -> None:
    folder, _ = tiny_job
    rows = [
        {"id": "long", "prompt_token_ids": [3] * 40, "max_tokens": 40},
        {"id": "adapted", "prompt_token_ids": [3], "max_tokens": 2, "adapter": VARIANTS[0].name},
        {"id": "good", "prompt_token_ids": [3], "max_tokens": 2},
    ]
    ended = caraserve(
        *("run", "--base", folder / "base", "--adapters", folder / "good", "--out", tmp_path / "out"),
        *("--kv-memory", "16KiB", "--adapter-memory", "1KB", write_rows(tmp_path / "r.jsonl", rows)),
    )
    assert ended.returncode == 3
    assert [answer["id"] for answer in read_rows(tmp_path / "out" / "outputs.jsonl")] == ["good"]
    errors = {error["id"]: error for error in read_rows(tmp_path / "out" / "errors.jsonl")}
    assert {name: error["code"] for name, error in errors.items()} == {
        "long": "kv_capacity",
        "adapted": "adapter_too_large",
    }
    assert "raise --kv-memory" in errors["long"]["message"]
    assert "raise --adapter-memory" in errors["adapted"]["message"]
