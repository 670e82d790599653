"""Columns to keys: by name, by --map, by a template; and what is refused before a row is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from caraserve_cli.errors import InputError, OptionError
from caraserve_cli.requests.columns import ColumnError, ColumnMap

ROW = {"id": 7, "question": "2+2?", "team": "math", "max_tokens": 5.0, "seed": None, "extra": object()}


def test_mapped_columns_and_those_of_a_keys_own_name() -> None:
    columns = ColumnMap.parse(["prompt=question,adapter=team"], None)
    assert columns.request_of(ROW) == {"id": "7", "prompt": "2+2?", "adapter": "math", "max_tokens": 5}
    assert columns.used_columns(list(ROW), "it") == ["id", "question", "team", "max_tokens", "seed"]


def test_a_template_makes_the_prompt(tmp_path: Path) -> None:
    file = tmp_path / "prompt.jinja"
    file.write_text("Q: {{ question }}\n{% for n in range(2) %}{{ n }}{% endfor %}\n")
    row = ROW | {"prompt": "not this", "messages": []}
    for template in (str(file), file.read_text()):
        columns = ColumnMap.parse([], template)
        assert columns.request_of(row)["prompt"] == "Q: 2+2?\n01\n"
        assert "messages" not in columns.request_of(row)
        assert columns.used_columns(list(row), "it") == ["id", "question", "max_tokens", "seed"]


def test_nulls_inside_objects_are_keys_that_are_not_there() -> None:
    row = {"messages": [{"role": "user", "content": "x", "name": None}], "metadata": {"a": None, "b": [None]}}
    assert ColumnMap().request_of(row) == {
        "messages": [{"role": "user", "content": "x"}],
        "metadata": {"b": [None]},
    }


@pytest.mark.parametrize(
    ("mappings", "template", "message"),
    [
        (["prompt"], None, "--map: 'prompt' is no KEY=COLUMN"),
        (["promt=q"], None, "--map: 'promt' is no key of a request; did you mean 'prompt'?"),
        (["prompt=q", "prompt=r"], None, "--map: 'prompt' is mapped twice, to q and to r"),
        (["prompt=q"], "{{ q }}", "--template: it makes the prompt, and --map"),
        ([], "{{ q", "--template: line 1: "),
        ([], "prompt.txt", "--template: 'prompt.txt' is neither a file nor a template"),
    ],
)
def test_wrong_options(mappings: list[str], template: str | None, message: str) -> None:
    with pytest.raises(OptionError) as refused:
        ColumnMap.parse(mappings, template)
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (ColumnMap({"prompt": "q"}), "--map: it has no column 'q'; its columns are a, b"),
        (ColumnMap({}, "{{ q }}"), "--template: it has no column 'q'"),
        (ColumnMap(), "it has none of the columns prompt, messages, prompt_token_ids (it has a, b)"),
    ],
)
def test_columns_that_are_not_there(columns: ColumnMap, message: str) -> None:
    with pytest.raises(InputError) as refused:
        columns.used_columns(["a", "b"], "it")
    assert str(refused.value).startswith(message)


def test_a_row_without_a_named_column() -> None:
    for columns in (ColumnMap({"prompt": "q"}), ColumnMap({}, "{{ q }}")):
        with pytest.raises(ColumnError, match="q"):
            columns.request_of(ROW)


def test_a_template_reaches_nothing_beyond_its_columns() -> None:
    columns = ColumnMap.parse([], "{{ question.__class__.__mro__ }}")
    with pytest.raises(ColumnError, match="unsafe"):
        columns.request_of(ROW)


def test_null_has_no_text_in_a_template() -> None:
    columns = ColumnMap(template="Q: {{ question }}")
    with pytest.raises(ColumnError, match="a column in it is null"):
        columns.request_of({"question": None})
    optional = ColumnMap(template="Q: {{ question or '' }}")
    assert optional.request_of({"question": None}) == {"prompt": "Q: "}


def test_bytes_are_text_or_refused() -> None:
    assert ColumnMap().request_of({"prompt": b"caf\xc3\xa9"}) == {"prompt": "café"}
    assert ColumnMap(template="{{ q }}").request_of({"q": b"x"}) == {"prompt": "x"}
    with pytest.raises(ColumnError, match="column 'prompt' holds bytes that are no UTF-8"):
        ColumnMap().request_of({"prompt": b"\xff"})


def test_values_of_a_file_of_texts() -> None:
    row = {
        "id": "007",
        "prompt": "12",
        "adapter": "null",
        "max_tokens": "5.0",
        "temperature": "0.5",
        "ignore_eos": "True",
        "metadata": '{"a": 1}',
        "seed": "many",
        "top_p": None,
    }
    assert ColumnMap().request_of(row, is_text=True) == {
        "id": "007",
        "prompt": "12",
        "adapter": "null",
        "max_tokens": 5,
        "temperature": 0.5,
        "ignore_eos": True,
        "metadata": {"a": 1},
        "seed": "many",
    }
