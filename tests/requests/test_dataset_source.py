"""Datasets of every kind give the same lines; what cannot be opened says why in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from caraserve_cli.errors import InputError
from caraserve_cli.requests.columns import ColumnMap
from caraserve_cli.requests.dataset_source import DatasetSource, dataset_name, is_dataset
from caraserve_cli.requests.opening import open_requests

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


def test_a_dataset_named_as_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` looks for a folder OWNER/NAME first: what stands in for the hub here."""
    (tmp_path / "owner" / "name").mkdir(parents=True)
    repository(tmp_path / "owner" / "name")
    monkeypatch.chdir(tmp_path)
    assert read("hf://owner/name?split=train") == EXPECTED
    assert len(read("hf://owner/name?split=test")) == 1
    assert dataset_name("hf://owner/name?split=test") == "name"
    with pytest.raises(
        InputError, match=r"has several splits; add \?split= with one of (train, test|test, train)"
    ):
        read("hf://owner/name")
    with pytest.raises(InputError, match="has no split 'validation'"):
        read("hf://owner/name?split=validation")


def test_what_cannot_be_opened(tmp_path: Path) -> None:
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
