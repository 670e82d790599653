"""Every key of a request line: what is taken, what is refused, and with which words."""

from collections.abc import Mapping

import orjson
import pytest

from caraserve_cli.core import Bounds, RequestRow, SamplingParams
from caraserve_cli.errors import RowError, RowErrorCode
from caraserve_cli.requests.row import REQUEST_KEYS, RowDefaults, decode_line, parse_row


def parse(line: bytes, defaults: RowDefaults | None = None) -> RequestRow:
    return parse_row(decode_line(line), 7, defaults or RowDefaults(), lambda: "made-up")


def parse_keys(keys: Mapping[str, object], defaults: RowDefaults | None = None) -> RequestRow:
    return parse(orjson.dumps({"id": "r1", "prompt": "hello"} | dict(keys)), defaults)


def test_every_key_is_taken() -> None:
    row = parse_keys(
        {
            "adapter": "team/summarise",
            "max_tokens": 5,
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 40,
            "min_p": 0.1,
            "seed": 2**64 - 1,
            "stop": ["\n", "END"],
            "stop_token_ids": [3, 0],
            "ignore_eos": True,
            "repetition_penalty": 1.1,
            "presence_penalty": -2,
            "frequency_penalty": 2,
            "logprobs": 20,
            "metadata": {"a": [1, None]},
            "arrival_ms": 1.5,
            "deadline_ms": 2000,
            "ttft_slo_ms": 500,
            "tpot_slo_ms": 50.5,
        }
    )
    assert row == RequestRow(
        id="r1",
        line=7,
        prompt="hello",
        adapter="team/summarise",
        sampling=SamplingParams(
            max_tokens=5,
            temperature=0.5,
            top_p=0.9,
            top_k=40,
            min_p=0.1,
            seed=2**64 - 1,
            stop=("\n", "END"),
            stop_token_ids=(3, 0),
            ignore_eos=True,
            repetition_penalty=1.1,
            presence_penalty=-2.0,
            frequency_penalty=2.0,
            logprobs=20,
        ),
        bounds=Bounds(deadline_ms=2000.0, ttft_slo_ms=500.0, tpot_slo_ms=50.5),
        arrival_ms=1.5,
        metadata={"a": [1, None]},
    )


def test_numbers_of_the_schema_become_floats() -> None:
    row = parse_keys({"temperature": 1, "arrival_ms": 3, "deadline_ms": 2})
    assert [type(value) for value in (row.sampling.temperature, row.arrival_ms, row.bounds.deadline_ms)] == [
        float,
        float,
        float,
    ]


DEFAULTS = RowDefaults(
    sampling=SamplingParams(
        max_tokens=9, stop=("x",), stop_token_ids=(2,), seed=4, ignore_eos=True, logprobs=3
    ),
    bounds=Bounds(deadline_ms=10.0, ttft_slo_ms=11.0, tpot_slo_ms=12.0),
    adapter="usual",
)


def test_keys_left_out_have_the_defaults_of_the_run() -> None:
    row = parse_keys({}, DEFAULTS)
    assert (row.sampling, row.bounds, row.adapter) == (DEFAULTS.sampling, DEFAULTS.bounds, "usual")
    assert (row.arrival_ms, row.metadata) == (0.0, {})


def test_null_means_the_default_but_for_the_adapter() -> None:
    nulls = dict.fromkeys(set(REQUEST_KEYS) - {"id", "prompt", "adapter"})
    row = parse_keys(nulls, DEFAULTS)
    assert (row.sampling, row.bounds, row.adapter) == (DEFAULTS.sampling, DEFAULTS.bounds, "usual")
    assert parse_keys({"adapter": None}, DEFAULTS).adapter is None


def test_empty_lists_switch_default_stops_off() -> None:
    row = parse_keys({"stop": [], "stop_token_ids": []}, DEFAULTS)
    assert (row.sampling.stop, row.sampling.stop_token_ids) == ((), ())


def test_one_stop_string_needs_no_list() -> None:
    assert parse_keys({"stop": "ab"}).sampling.stop == ("ab",)


@pytest.mark.parametrize("line", [b'{"prompt": "p"}', b'{"id": null, "prompt": "p"}'])
def test_a_missing_id_is_made(line: bytes) -> None:
    assert parse(line).id == "made-up"


def test_an_id_is_made_for_valid_rows_only() -> None:
    def fail() -> str:
        pytest.fail("asked for an id")

    with pytest.raises(RowError):
        parse_row({"prompt": "p", "max_tokens": 0}, 1, RowDefaults(), fail)
    assert parse_row({"prompt": "p", "id": "x"}, 1, RowDefaults(), fail).id == "x"


def test_token_ids_are_a_prompt() -> None:
    row = parse(b'{"id": "r1", "prompt_token_ids": [1, 0, 4294967296], "prompt": null}')
    assert (row.prompt, row.messages, row.prompt_token_ids) == (None, None, (1, 0, 4294967296))


def test_surrounding_spaces_and_carriage_returns_are_no_error() -> None:
    assert parse(b'  {"id": "r1", "prompt": "p"} \t\r').id == "r1"


def test_text_keeps_every_character() -> None:
    assert parse('{"id": "é", "prompt": "a\\u0000 \\ud83d\\ude00 ü"}'.encode()).prompt == "a\0 😀 ü"


BAD_LINES = [
    (b'{"prompt": "\xff"}', "invalid_utf8", "not valid UTF-8 at byte 13 of the line"),
    (b"", "invalid_json", "not valid JSON at character 1 of the line: Input is a zero-length"),
    (b'{"prompt": "a"', "invalid_json", "not valid JSON at character 15 of the line: "),
    (b'{"prompt": "a",}', "invalid_json", "not valid JSON at character 15 of the line: trailing comma"),
    (b"{'prompt': 'a'}", "invalid_json", "not valid JSON at character 2 of the line: "),
    (b'{"prompt": "a"} {}', "invalid_json", "unexpected content after document"),
    (b'{"prompt": "a", "temperature": NaN}', "invalid_json", "not valid JSON at character 32"),
    (b'{"prompt": "a", "temperature": -Infinity}', "invalid_json", "not valid JSON at character 33"),
    (b'{"prompt": "a", "temperature": 1e999}', "invalid_json", "number is infinity"),
    (b'{"prompt": "\\ud800"}', "invalid_json", "surrogate"),
    (b"[" * 3000 + b"]" * 3000, "invalid_json", "depth limit exceeded"),
    (b"[1, 2]", "invalid_request", "a request must be a JSON object, got a list; write an object a line"),
    (b" [\r", "invalid_json", "unexpected end of data; a request stands on one line"),
    (b'"text"', "invalid_request", 'a request must be a JSON object, got "text"'),
    (b"null", "invalid_request", "a request must be a JSON object, got null"),
    (b"{}", "invalid_request", "needs exactly one of prompt, messages, prompt_token_ids; got none"),
    (
        b'{"prompt": null}',
        "invalid_request",
        "needs exactly one of prompt, messages, prompt_token_ids; got none",
    ),
    (b'{"prompt": "a", "prompt_token_ids": [1]}', "invalid_request", "got prompt and prompt_token_ids"),
    (b'{"prompt": "", "messages": []}', "invalid_request", "got prompt and messages"),
    (b'{"prompt": ""}', "invalid_request", "prompt is empty"),
    (b'{"prompt": ["a"]}', "invalid_request", "prompt must be a string, got a list"),
    (b'{"prompt": 5}', "invalid_request", "prompt must be a string, got 5"),
    (b'{"prompt_token_ids": []}', "invalid_request", "prompt_token_ids is empty"),
    (
        b'{"prompt_token_ids": "1"}',
        "invalid_request",
        'prompt_token_ids must be a list of token ids, got "1"',
    ),
    (
        b'{"prompt_token_ids": [1, -2]}',
        "invalid_request",
        "prompt_token_ids[1] must be an integer of at least 0, got -2",
    ),
    (b'{"prompt_token_ids": [true]}', "invalid_request", "prompt_token_ids[0] must be an integer"),
    (b'{"prompt_token_ids": [1.0]}', "invalid_request", "prompt_token_ids[0] must be an integer"),
    (b'{"prompt": "a", "id": 7}', "invalid_request", 'id must be a non-empty string, got 7 (write "7")'),
    (b'{"prompt": "a", "id": true}', "invalid_request", "id must be a non-empty string, got true"),
    (b'{"prompt": "a", "id": ""}', "invalid_request", 'id must be a non-empty string, got ""'),
    (
        b'{"prompt": "a", "temprature": 1}',
        "invalid_request",
        'unknown key "temprature"; did you mean "temperature"?',
    ),
    (b'{"prompt": "a", "zzz\\nq": 1}', "invalid_request", 'unknown key "zzz\\nq"'),
]

BAD_KEYS = [
    ("adapter", "", "adapter is empty"),
    ("adapter", 3, "adapter must be a string, got 3"),
    ("max_tokens", 0, "max_tokens must be an integer of at least 1, got 0"),
    ("max_tokens", -5, "max_tokens must be an integer of at least 1, got -5"),
    ("max_tokens", 1.5, "max_tokens must be an integer of at least 1, got 1.5"),
    ("max_tokens", True, "max_tokens must be an integer of at least 1, got true"),
    ("max_tokens", "9" * 100, 'max_tokens must be an integer of at least 1, got "' + "9" * 58 + "…"),
    ("temperature", -0.1, "temperature must be a number of at least 0, got -0.1"),
    ("temperature", "hot", 'temperature must be a number of at least 0, got "hot"'),
    ("temperature", False, "temperature must be a number of at least 0, got false"),
    ("top_p", 0, "top_p must be a number above 0 and at most 1, got 0"),
    ("top_p", 1.01, "top_p must be a number above 0 and at most 1, got 1.01"),
    ("top_k", -1, "top_k must be an integer of at least 0, got -1"),
    ("min_p", 2, "min_p must be a number from 0 to 1, got 2"),
    ("min_p", -0.5, "min_p must be a number from 0 to 1, got -0.5"),
    ("seed", -1, "seed must be an integer from 0 to 18446744073709551615, got -1"),
    ("seed", 1.0, "seed must be an integer from 0 to 18446744073709551615, got 1.0"),
    ("stop", "", 'stop must be a non-empty string or a list of them, got ""'),
    ("stop", ["a", ""], 'stop must be a non-empty string or a list of them, got ""'),
    ("stop", ["a", 1], "stop must be a non-empty string or a list of them, got 1"),
    ("stop", {"a": 1}, "stop must be a non-empty string or a list of them, got an object"),
    ("stop_token_ids", 2, "stop_token_ids must be a list of token ids, got 2"),
    ("stop_token_ids", [2, None], "stop_token_ids[1] must be an integer of at least 0, got null"),
    ("ignore_eos", 1, "ignore_eos must be true or false, got 1"),
    ("repetition_penalty", 0, "repetition_penalty must be a number above 0, got 0"),
    ("presence_penalty", 2.5, "presence_penalty must be a number from -2 to 2, got 2.5"),
    ("frequency_penalty", -3, "frequency_penalty must be a number from -2 to 2, got -3"),
    ("logprobs", 21, "logprobs must be an integer from 0 to 20, got 21"),
    ("logprobs", True, "logprobs must be an integer from 0 to 20, got true"),
    ("metadata", [1], "metadata must be an object, got a list"),
    ("arrival_ms", -1, "arrival_ms must be a number of at least 0, got -1"),
    ("deadline_ms", 0, "deadline_ms must be a number above 0, got 0"),
    ("ttft_slo_ms", -5, "ttft_slo_ms must be a number above 0, got -5"),
    ("tpot_slo_ms", [], "tpot_slo_ms must be a number above 0, got a list"),
]


@pytest.mark.parametrize(("line", "code", "fragment"), BAD_LINES)
def test_a_bad_line_is_refused_in_one_line(line: bytes, code: str, fragment: str) -> None:
    with pytest.raises(RowError) as caught:
        parse(line)
    assert caught.value.code == code
    assert fragment in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.request_id is None


@pytest.mark.parametrize(("key", "value", "message"), BAD_KEYS)
def test_a_wrong_value_is_refused_with_key_rule_and_value(key: str, value: object, message: str) -> None:
    with pytest.raises(RowError) as caught:
        parse_keys({key: value})
    assert (caught.value.code, caught.value.request_id) == (RowErrorCode.INVALID_REQUEST, "r1")
    assert caught.value.message == message


def test_every_optional_key_has_a_refusal_in_the_corpus() -> None:
    assert {key for key, _, _ in BAD_KEYS} == set(REQUEST_KEYS) - {
        "id",
        "prompt",
        "messages",
        "prompt_token_ids",
    }


def test_metadata_that_could_not_be_written_again_is_refused() -> None:
    nested = b'{"id": "r1", "prompt": "p", "metadata": {"a": ' + b"[" * 400 + b"]" * 400 + b"}}"
    with pytest.raises(RowError, match="metadata is nested too deeply"):
        parse(nested)
    fine = b'{"id": "r1", "prompt": "p", "metadata": {"a": ' + b"[" * 200 + b"]" * 200 + b"}}"
    orjson.dumps({"metadata": parse(fine).metadata})


def test_a_row_with_an_unknown_key_is_known_by_its_id() -> None:
    with pytest.raises(RowError) as caught:
        parse_keys({"n": 2})
    assert caught.value.request_id == "r1"
