"""Chat messages: forms of content, keys for the template, refusals."""

import pytest

from caraserve_cli.errors import RowError
from caraserve_cli.requests.fields import Fields
from caraserve_cli.requests.messages import parse_messages


def test_absent_and_null_are_no_messages() -> None:
    assert parse_messages(Fields({})) is None
    assert parse_messages(Fields({"messages": None})) is None


def test_other_keys_are_kept_for_the_template() -> None:
    message = {"role": "assistant", "content": "", "name": "bot", "tool_calls": [{"id": 1}]}
    assert parse_messages(Fields({"messages": [message]})) == (message,)


def test_text_parts_become_one_string() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    messages = parse_messages(Fields({"messages": [{"role": "user", "content": parts}]}))
    assert messages == ({"role": "user", "content": "one\ntwo"},)


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([], "messages is empty"),
        ("hi", 'messages must be a list of objects, got "hi"'),
        (["hi"], 'messages[0] must be an object with role and content, got "hi"'),
        ([{"content": "x"}], "messages[0] has no role"),
        ([{"role": "user", "content": "x"}, {"role": "user"}], "messages[1] has no content"),
        ([{"role": 1, "content": "x"}], "messages[0].role must be a string, got 1"),
        (
            [{"role": "user", "content": None}],
            "messages[0].content must be a string or a list of text parts, got null",
        ),
        (
            [{"role": "user", "content": ["x"]}],
            'messages[0].content[0] must be a part {"type": "text", "text": …}, got "x"',
        ),
        (
            [{"role": "user", "content": [{"type": "image_url"}]}],
            'messages[0].content[0].type must be "text" (no other kind of content can be answered), '
            'got "image_url"',
        ),
        (
            [{"role": "user", "content": [{"type": "text", "text": 2}]}],
            "messages[0].content[0].text must be a string, got 2",
        ),
        (
            [{"role": "user", "content": [{"type": "text", "text": "x", "extra": 2}]}],
            'messages[0].content[0] must be a part {"type": "text", "text": …}, has other keys',
        ),
    ],
)
def test_refusals(messages: object, expected: str) -> None:
    with pytest.raises(RowError) as caught:
        parse_messages(Fields({"messages": messages}, "r1"))
    assert (caught.value.message, caught.value.request_id) == (expected, "r1")
