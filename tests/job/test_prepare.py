from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from caraserve_cli.adapters.library import AdapterLibrary
from caraserve_cli.core import BatchCall, Bounds, Request, RequestRow, SamplingParams
from caraserve_cli.job.prepare import Preparer
from caraserve_cli.model.tokenizer import load_tokenizer
from caraserve_cli.requests.stream import RejectedRow
from tests.cli.command import SAMPLE

ROW = RequestRow(id="r", line=3, prompt="Input: lantern\nOutput: ", adapter="upper")


@pytest.fixture(scope="module")
def library() -> AdapterLibrary:
    return AdapterLibrary.scan([SAMPLE / "adapters"])


@pytest.fixture(scope="module")
def preparer(library: AdapterLibrary) -> Preparer:
    return Preparer(load_tokenizer(SAMPLE / "base"), library, vocab_size=259, run_seed=1)


def prepare(preparer: Preparer, **changes: object) -> Request | RejectedRow:
    (prepared,) = preparer.prepare([dataclasses.replace(ROW, **changes)])  # type: ignore[arg-type]
    return prepared


def test_a_row_becomes_tokens(preparer: Preparer) -> None:
    request = prepare(preparer)
    assert isinstance(request, Request)
    assert request.prompt_token_ids == (256, *ROW.prompt.encode())  # type: ignore[union-attr]
    assert (request.id, request.line, request.adapter) == ("r", 3, "upper")


def test_a_chat_becomes_what_the_template_says(preparer: Preparer) -> None:
    chat = prepare(preparer, prompt=None, messages=({"role": "user", "content": "lantern"},))
    plain = prepare(preparer)
    assert isinstance(chat, Request)
    assert isinstance(plain, Request)
    assert chat.prompt_token_ids == plain.prompt_token_ids


def test_a_stop_string_that_is_a_special_token_ends_an_answer_by_its_id(preparer: Preparer) -> None:
    name, token_id = next(iter(load_tokenizer(SAMPLE / "base").special_ids.items()))  # type: ignore[union-attr]
    request = prepare(preparer, sampling=SamplingParams(stop=("x", name), stop_token_ids=(7,)))
    assert isinstance(request, Request)
    assert (request.sampling.stop, request.sampling.stop_token_ids) == (("x",), (7, token_id))
    row = prepare(preparer, sampling=SamplingParams(stop=(f"{name}\n",)))
    assert isinstance(row, RejectedRow)
    assert f'has the special token "{name}" in it' in row.message


def test_where_there_is_no_text_no_stop_string_is_looked_for(library: AdapterLibrary) -> None:
    without = Preparer(None, library, vocab_size=259, run_seed=1)
    row = prepare(without, prompt=None, prompt_token_ids=(1,), sampling=SamplingParams(stop=("x",)))
    assert isinstance(row, RejectedRow)
    assert (row.code, row.message[:5]) == ("no_tokenizer", "stop:")


def test_rows_keep_their_order_and_their_own_prompts(preparer: Preparer) -> None:
    rows = [
        dataclasses.replace(
            ROW,
            id=str(number),
            prompt=f"{number}" if number % 2 else None,
            prompt_token_ids=None if number % 2 else (number,),
        )
        for number in range(6)
    ]
    prepared = preparer.prepare(rows)
    assert [item.prompt_token_ids for item in prepared if isinstance(item, Request)] == [
        (0,),
        (256, 49),
        (2,),
        (256, 51),
        (4,),
        (256, 53),
    ]


def test_seeds_differ_by_id_and_repeat_by_run(preparer: Preparer, library: AdapterLibrary) -> None:
    def seed(preparer: Preparer, **changes: object) -> int | None:
        request = prepare(preparer, **changes)
        assert isinstance(request, Request)
        return request.sampling.seed

    again = Preparer(load_tokenizer(SAMPLE / "base"), library, vocab_size=259, run_seed=1)
    other = Preparer(load_tokenizer(SAMPLE / "base"), library, vocab_size=259, run_seed=2)
    assert seed(preparer) == seed(again) != seed(other)
    assert seed(preparer) != seed(preparer, id="s")
    assert seed(preparer, sampling=SamplingParams(seed=5)) == 5


@pytest.mark.parametrize(
    ("changes", "code", "fragment"),
    [
        ({"adapter": "uper"}, "unknown_adapter", "did you mean 'upper'?"),
        ({"prompt": None, "prompt_token_ids": (1, 259)}, "token_out_of_range", "token id 259"),
        ({"sampling": SamplingParams(stop_token_ids=(300,))}, "token_out_of_range", "stop_token_ids"),
    ],
    ids=["adapter", "token", "stop token"],
)
def test_what_cannot_be_answered_is_rejected(
    preparer: Preparer, changes: dict[str, object], code: str, fragment: str
) -> None:
    rejected = prepare(preparer, bounds=Bounds(deadline_ms=5), **changes)
    assert isinstance(rejected, RejectedRow)
    assert (rejected.code, rejected.request_id, rejected.line) == (code, "r", 3)
    assert fragment in rejected.message
    assert rejected.carried_bound


def test_without_a_tokenizer_only_token_ids_are_prompts(library: AdapterLibrary) -> None:
    preparer = Preparer(None, library, vocab_size=259, run_seed=0)
    rejected = prepare(preparer)
    assert isinstance(rejected, RejectedRow)
    assert rejected.code == "no_tokenizer"
    assert isinstance(prepare(preparer, prompt=None, prompt_token_ids=(3,)), Request)


def test_where_there_are_no_adapters_at_all_it_says_so() -> None:
    preparer = Preparer(load_tokenizer(SAMPLE / "base"), AdapterLibrary({}), vocab_size=259, run_seed=1)
    rejected = prepare(preparer)
    assert isinstance(rejected, RejectedRow)
    assert (
        rejected.message == "adapter 'upper' is unknown: there are no adapters; --adapters names their folder"
    )


@pytest.mark.parametrize(("model", "hint"), [("gpt-4o", ""), ("uper", "; did you mean 'upper'?")])
def test_a_batch_line_is_told_of_the_base_too(library: AdapterLibrary, model: str, hint: str) -> None:
    tokenizer = load_tokenizer(SAMPLE / "base")
    preparer = Preparer(tokenizer, library, vocab_size=259, run_seed=1, base_names={"./my/base", "base"})
    rejected = prepare(preparer, adapter=None, batch_call=BatchCall(is_chat=True, model=model))
    assert isinstance(rejected, RejectedRow)
    told = f"model '{model}' is neither the base, 'base', nor an adapter below --adapters{hint}"
    assert (rejected.code, rejected.message) == ("unknown_adapter", told)


TEMPLATE = "{% for each in messages %}[{{ each.role }}] {{ each.content }}{% endfor %}>"
NAMED = [{"name": "rag", "template": "x"}, {"name": "default", "template": TEMPLATE}]
MESSAGES = ({"role": "user", "content": "lantern"},)


@pytest.fixture
def own_templates(tmp_path: Path) -> Preparer:
    """Adapters that bring a template in each way, one without, and two with one that does not count."""
    for name, files in {
        "file": {"chat_template.jinja": TEMPLATE, "tokenizer_config.json": '{"chat_template": "x"}'},
        "config": {"tokenizer_config.json": json.dumps({"chat_template": TEMPLATE})},
        "named": {"tokenizer_config.json": json.dumps({"chat_template": NAMED})},
        "none": {"tokenizer_config.json": "{}"},
        "nameless": {"tokenizer_config.json": '{"chat_template": [{"name": "rag", "template": "x"}]}'},
        "torn": {"tokenizer_config.json": "{"},
    }.items():
        (tmp_path / name).mkdir()
        for file, text in {"adapter_config.json": "{}", **files}.items():
            (tmp_path / name / file).write_text(text)
    tokenizer = load_tokenizer(SAMPLE / "base")
    return Preparer(tokenizer, AdapterLibrary.scan([tmp_path]), vocab_size=259, run_seed=1)


@pytest.mark.parametrize("adapter", ["file", "config", "named"])
def test_messages_go_through_the_adapters_own_template(own_templates: Preparer, adapter: str) -> None:
    own = prepare(own_templates, adapter=adapter, prompt=None, messages=MESSAGES)
    assert isinstance(own, Request)
    assert bytes(own.prompt_token_ids) == b"[user] lantern>"


def test_without_one_they_go_through_the_bases(own_templates: Preparer) -> None:
    without, base = (
        prepare(own_templates, adapter=name, prompt=None, messages=MESSAGES) for name in ("none", None)
    )
    assert isinstance(without, Request)
    assert isinstance(base, Request)
    assert without.prompt_token_ids == base.prompt_token_ids


@pytest.mark.parametrize(
    ("adapter", "told"), [("nameless", "none of which is called"), ("torn", "cannot be read")]
)
def test_a_template_that_does_not_count_is_refused(own_templates: Preparer, adapter: str, told: str) -> None:
    row = prepare(own_templates, adapter=adapter, prompt=None, messages=MESSAGES)
    assert isinstance(row, RejectedRow)
    assert row.code == "chat_template"
    assert told in row.message
    plain = prepare(own_templates, adapter=adapter)
    assert isinstance(plain, Request), "no template is needed"
