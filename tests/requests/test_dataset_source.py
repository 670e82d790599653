"""Datasets of every kind give the same lines; what cannot be opened says why in one line."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow
import pytest
from pyarrow.parquet import write_table

from caraserve_cli.errors import InputError
from caraserve_cli.requests.columns import ColumnMap
from caraserve_cli.requests.dataset_path import check_dataset, is_dataset
from caraserve_cli.requests.dataset_source import DatasetSource
from caraserve_cli.requests.many_sources import open_all
from caraserve_cli.requests.opening import open_requests
from caraserve_cli.requests.row import RowDefaults
from caraserve_cli.requests.stream import RowStream

ROWS = [{"id": f"r{n}", "question": f"what is {n}?", "team": "upper", "extra": n} for n in range(5)]
COLUMNS = ColumnMap({"prompt": "question", "adapter": "team"})
EXPECTED = [{"id": row["id"], "prompt": row["question"], "adapter": "upper"} for row in ROWS]


def table() -> datasets.Dataset:
    return datasets.Dataset.from_list(ROWS)


def parquet(folder: Path) -> str:
    path = folder / "a [1].parquet"  # brackets are patterns to `datasets`
    table().to_parquet(path)
    return str(path)


def csv(folder: Path) -> str:
    table().to_csv(folder / "a.csv")
    return str(folder / "a.csv")


def tsv(folder: Path) -> str:
    table().to_csv(folder / "a.tsv", sep="\t")
    return str(folder / "a.tsv")


def saved(folder: Path) -> str:
    table().save_to_disk(folder / "saved")
    return str(folder / "saved")


def saved_splits(folder: Path) -> str:
    datasets.DatasetDict({"train": table(), "test": table().take(1)}).save_to_disk(folder / "saved")
    return f"{folder / 'saved'}?split=train"


def arrow(folder: Path) -> str:
    return str(next(Path(saved(folder)).glob("*.arrow")))


def repository(folder: Path) -> str:
    """As one is laid out on the hub."""
    (folder / "data").mkdir()
    table().to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    table().take(1).to_parquet(folder / "data" / "test-00000-of-00001.parquet")
    return f"{folder}?split=train"


def read(source: str, columns: ColumnMap = COLUMNS) -> list[object]:
    with open_requests(source, columns) as lines:
        numbered = list(lines)
    assert [line.number for line in numbered] == list(range(1, len(numbered) + 1))
    assert [line.problem for line in numbered] == [None] * len(numbered)
    return [json.loads(line.data or b"") for line in numbered]


@pytest.mark.parametrize("make", [parquet, csv, tsv, arrow, saved, saved_splits, repository])
def test_every_kind_gives_the_same_lines(make: Callable[[Path], str], tmp_path: Path) -> None:
    source = make(tmp_path)
    assert is_dataset(source)
    assert read(source) == EXPECTED


def test_splits_of_a_folder_are_chosen(tmp_path: Path) -> None:
    source = repository(tmp_path).partition("?")[0]
    assert len(read(f"{source}?split=test")) == 1
    with pytest.raises(
        InputError, match=r"has several splits; add \?split= with one of (train, test|test, train)"
    ):
        read(source)
    with pytest.raises(InputError, match="has no split 'validation'"):
        read(f"{source}?split=validation")


def test_a_query_that_a_local_dataset_cannot_honour(tmp_path: Path) -> None:
    for make in (parquet, saved, repository):
        folder = tmp_path / make.__name__
        folder.mkdir()
        source = make(folder).partition("?")[0]
        with pytest.raises(InputError, match="revision= is for hf://OWNER/NAME; leave it out"):
            check_dataset(f"{source}?split=train&revision=main")
        if make is not repository:
            with pytest.raises(InputError, match="it has no configurations; leave out config="):
                check_dataset(f"{source}?split=train&config=small")


def test_what_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _duration_s: None)  # between the five tries to reach the Hub
    (tmp_path / "broken.parquet").write_bytes(b"no parquet")
    for source in ("hf://nobody/nothing?split=train", str(tmp_path), str(tmp_path / "broken.parquet")):
        with pytest.raises(InputError) as refused:
            DatasetSource(source, COLUMNS)
        assert str(refused.value).startswith(f"dataset '{source}' cannot be opened: ")
        assert "\n" not in str(refused.value)


def test_lines_of_json_with_other_keys(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS) + '{"question": "no team"}\n')
    with open_requests(str(path), COLUMNS) as lines:
        *good, bad = list(lines)
    assert [json.loads(line.data or b"") for line in good] == EXPECTED
    assert bad.problem == "it has no column 'team', which --map names"


def test_texts_of_a_csv_file_stay_as_they_are(tmp_path: Path) -> None:
    """Guessed types would make 7 of 007, and no adapter of one that is called NA."""
    (tmp_path / "a.csv").write_text('id,prompt,adapter,max_tokens\n007,None,NA,3\n8,12,null,\n9,"a\nb",,4\n')
    assert read(str(tmp_path / "a.csv"), ColumnMap()) == [
        {"id": "007", "prompt": "None", "adapter": "NA", "max_tokens": 3},
        {"id": "8", "prompt": "12", "adapter": "null"},
        {"id": "9", "prompt": "a\nb", "max_tokens": 4},
    ]


def test_an_adapter_called_na_in_a_folder_of_csv_files(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("id,prompt,adapter\n1,x,NA\n2,y,\n")
    assert read(str(tmp_path), ColumnMap()) == [
        {"id": "1", "prompt": "x", "adapter": "NA"},
        {"id": "2", "prompt": "y"},
    ]


def test_bytes_in_parquet_are_texts_or_refused(tmp_path: Path) -> None:
    import pyarrow

    prompts = pyarrow.array([b"caf\xc3\xa9", b"\xff"], pyarrow.binary())
    write_table(pyarrow.table({"prompt": prompts}), tmp_path / "a.parquet")
    with open_requests(str(tmp_path / "a.parquet")) as lines:
        good, bad = lines
    assert json.loads(good.data or b"") == {"prompt": "café"}
    assert bad.problem == "column 'prompt' holds bytes that are no UTF-8"


def test_bytes_within_an_object_are_refused(tmp_path: Path) -> None:
    from caraserve_cli.requests.dataset_source import as_line

    line = as_line(1, {"prompt": "x", "metadata": {"image": b"\xff\xd8"}}, ColumnMap())
    assert line.problem is not None
    assert "JSON serializable: bytes" in str(line.problem)


@pytest.mark.parametrize("make", [parquet, csv, arrow, saved, saved_splits, repository])
def test_of_batches_that_are_done_only_ids_are_read(
    make: Callable[[Path], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("caraserve_cli.requests.dataset_source._BATCH_ROWS", 2)
    with open_requests(make(tmp_path), COLUMNS) as source:
        done = {(1, "r0"), (2, "r1"), (3, "r2"), (5, "r4")}
        source.pass_over(lambda number, request_id, _: (number, request_id) in done)
        lines = list(source)
    assert [(line.number, line.done_id) for line in lines] == [
        (1, "r0"),
        (2, "r1"),
        (3, None),  # r3 in its batch is not answered
        (4, None),
        (5, "r4"),
    ]
    assert [json.loads(line.data or b"") for line in lines[2:4]] == EXPECTED[2:4]


def test_rows_that_are_done_are_counted_through_all_files(tmp_path: Path) -> None:
    parquet(tmp_path)
    seen = []
    with open_all(
        [parquet(tmp_path)] * 2, ColumnMap({"prompt": "question", "deadline_ms": "extra"})
    ) as source:
        source.pass_over(lambda *row: bool(seen.append(row)))
        assert len(list(source)) == 10
    assert seen == [(number, f"r{(number - 1) % 5}", True) for number in range(1, 11)]


def test_columns_called_as_keys_of_openai_batch_lines(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": "1", "url": "http://x", "body": "a text"}\n')
    assert read(str(tmp_path / "a.jsonl"), ColumnMap({"prompt": "body"})) == [{"id": "1", "prompt": "a text"}]


@pytest.mark.parametrize("is_done", [True, False])
def test_many_rows_take_constant_memory(is_done: bool, tmp_path: Path) -> None:
    """Beyond a batch, what grows with rows is their ids' hashes: 9 bytes in a table that grows by half."""
    path = tmp_path / "rows.parquet"
    rows = datasets.Dataset.from_dict({"id": [str(n) for n in range(30_000)], "prompt": ["x" * 200] * 30_000})
    rows.to_parquet(path)
    with DatasetSource(str(path), ColumnMap()) as source:
        if is_done:
            source.pass_over(lambda *_: True)
        stream = iter(RowStream(source, RowDefaults(), on_done=lambda: None))
        tracemalloc.start()
        try:
            assert sum(1 for _ in stream) == (0 if is_done else 30_000)
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak_bytes < 3 * 2**20  # the prompts alone are 6 MB


def test_a_text_that_is_no_utf8_breaks_off_in_a_line(tmp_path: Path) -> None:
    """Arrow does not look at texts when it reads them."""
    path = tmp_path / "rows.parquet"
    texts = pyarrow.array([b"fine", b"\xff\xfe"]).cast(pyarrow.binary()).view(pyarrow.string())
    write_table(pyarrow.table({"id": ["a", "b"], "prompt": texts}), path)
    with open_requests(str(path)) as source, pytest.raises(InputError, match="cannot be read beyond row 0"):
        list(source)
