"""The examples of OpenAI's documentation, with a model that is an adapter: in, answered, resumed, out."""

from __future__ import annotations

from pathlib import Path

from openai.types import Completion
from openai.types.chat import ChatCompletion

from tests.cli.command import SAMPLE, Row, read_rows, write_rows
from tests.cli.conftest import Caraserve

# https://platform.openai.com/docs/guides/batch, "Preparing your batch file", and the reference's example of
# a completion in the same form. Their models are replaced.
CHAT_1: Row = {
    "custom_id": "request-1",
    "method": "POST",
    "url": "/v1/chat/completions",
    "body": {
        "model": "upper",
        "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "Hello world!"},
        ],
        "max_tokens": 20,
    },
}
CHAT_2: Row = {
    "custom_id": "request-2",
    "method": "POST",
    "url": "/v1/chat/completions",
    "body": {
        "model": "base",
        "messages": [
            {"role": "system", "content": "You are an unhelpful assistant."},
            {"role": "user", "content": "Hello world!"},
        ],
        "max_tokens": 20,
        "logprobs": True,
        "top_logprobs": 2,
    },
}
COMPLETION: Row = {
    "custom_id": "request-3",
    "method": "POST",
    "url": "/v1/completions",
    "body": {
        "model": "upper",
        "prompt": "Input: horizon\nOutput: ",
        "max_tokens": 40,
        "temperature": 0,
        "logprobs": 1,
        "metadata": {"deadline_ms": "60000", "expected": "HORIZON"},
    },
}
UNKNOWN: Row = {**COMPLETION, "custom_id": "request-4", "body": {**COMPLETION["body"], "model": "uper"}}
TOOLS: Row = {**CHAT_1, "custom_id": "request-5", "body": {**CHAT_1["body"], "tools": [{"type": "function"}]}}
NATIVE: Row = {"id": "own", "prompt": "Input: horizon\nOutput: ", "adapter": "upper"}
ROWS = [CHAT_1, CHAT_2, COMPLETION, UNKNOWN, NATIVE, TOOLS]


def command(requests: Path, out: Path) -> list[str | Path]:
    return ["run", "--base", SAMPLE / "base", "--adapters", SAMPLE / "adapters", "--out", out, requests]


def test_examples_of_the_documentation(caraserve: Caraserve, tmp_path: Path) -> None:
    requests, out = write_rows(tmp_path / "batch.jsonl", ROWS), tmp_path / "out"
    ended = caraserve(*command(requests, out))
    assert ended.returncode == 3, ended.stderr
    rows = {row.get("custom_id", row["id"]): row for row in read_rows(out / "outputs.jsonl")}
    assert set(rows) == {"request-1", "request-2", "request-3", "own"}
    for name in ("request-1", "request-2", "request-3"):
        row = rows[name]
        assert row["error"] is None
        assert row["response"]["status_code"] == 200
        assert row["response"]["request_id"]
    first = ChatCompletion.model_validate(rows["request-1"]["response"]["body"], strict=True)
    assert (first.model, first.choices[0].message.role) == ("upper", "assistant")
    assert first.choices[0].message.content is not None
    second = ChatCompletion.model_validate(rows["request-2"]["response"]["body"], strict=True)
    assert second.usage is not None
    logprobs = second.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert "".join(token.token for token in logprobs.content) == second.choices[0].message.content
    assert all(len(position.top_logprobs) == 2 for position in logprobs.content)
    assert rows["request-2"]["caraserve"]["adapter"] is None
    third = Completion.model_validate(rows["request-3"]["response"]["body"], strict=True)
    assert (third.choices[0].text, third.choices[0].finish_reason) == ("HORIZON", "stop")
    assert third.choices[0].logprobs is not None
    assert "".join(third.choices[0].logprobs.tokens or ()) == "HORIZON", (
        "the token that ended it is not there"
    )
    assert rows["request-3"]["caraserve"]["slo_attained"] is True
    assert rows["own"]["text"] == "HORIZON"
    errors = {row["custom_id"]: row for row in read_rows(out / "errors.jsonl")}
    unknown, tools = errors["request-4"], errors["request-5"]
    assert unknown["response"]["status_code"] == 404
    assert unknown["error"]["code"] == "unknown_adapter"
    assert "did you mean 'upper'" in unknown["response"]["body"]["error"]["message"]
    assert tools["response"]["status_code"] == 400
    assert "tools is a list, which cannot be honoured" in tools["error"]["message"]


def test_a_resumed_batch_knows_what_is_done(caraserve: Caraserve, tmp_path: Path) -> None:
    """The report counts answers and errors of both forms; nothing is answered twice."""
    requests, out = write_rows(tmp_path / "batch.jsonl", ROWS[:5]), tmp_path / "out"
    assert caraserve(*command(requests, out)).returncode == 3
    write_rows(requests, [*ROWS, {**COMPLETION, "custom_id": "request-6"}])
    ended = caraserve(*command(requests, out), "--resume")
    assert ended.returncode == 3, ended.stderr
    ids = [row.get("custom_id", row["id"]) for row in read_rows(out / "outputs.jsonl")]
    assert sorted(ids) == ["own", "request-1", "request-2", "request-3", "request-6"]
    assert len(read_rows(out / "errors.jsonl")) == 2
    assert "5 answered, 2 failed" in ended.stdout
    page = (out / "report.html").read_text()
    assert all(request_id in page for request_id in ids)
    assert "Resumed: counts" in page
    assert "Exact match 100.0% (2 of 2)" in ended.stdout
    dry = caraserve(*command(requests, tmp_path / "dry"), "--dry-run")
    assert dry.stdout.count('"custom_id"') == 2


def test_what_runs_out_of_time_has_expired(caraserve: Caraserve, tmp_path: Path) -> None:
    late: Row = {**COMPLETION, "custom_id": "late"}
    late["body"] = {**COMPLETION["body"], "metadata": {"deadline_ms": "0.001"}}
    requests, out = write_rows(tmp_path / "batch.jsonl", [late, COMPLETION]), tmp_path / "out"
    job = [*command(requests, out), "--on-missed-deadline", "drop"]
    assert caraserve(*job).returncode == 3
    (error,) = read_rows(out / "errors.jsonl")
    assert (error["custom_id"], error["response"]) == ("late", None)
    assert error["error"]["code"] == "batch_expired"
    assert error["error"]["message"].startswith("deadline_ms 0.001 was exceeded by ")
    assert error["caraserve"] == {"line": 1, "code": "deadline_exceeded"}
    (answer,) = read_rows(out / "outputs.jsonl")
    assert answer["custom_id"] == "request-3"
    # It is known again, and answered when it is tried again without a deadline that drops.
    assert caraserve(*job, "--resume").returncode == 3
    assert len(read_rows(out / "errors.jsonl")) == 1
    ended = caraserve(*command(requests, out), "--resume", "--retry-errors")
    assert ended.returncode == 0, ended.stderr
    assert [row["custom_id"] for row in read_rows(out / "outputs.jsonl")] == ["request-3", "late"]
    assert read_rows(out / "outputs.jsonl")[1]["caraserve"]["slo_attained"] is False
