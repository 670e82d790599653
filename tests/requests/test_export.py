"""Answers as a table: the same rows, whatever the keys hold."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
from pyarrow import parquet

from caraserve_cli.errors import OutputError
from caraserve_cli.requests import export
from caraserve_cli.requests.export import OutputFormat, export_answers

ROWS = [
    {"id": "a", "adapter": None, "text": "x", "token_ids": [1, 2], "ttft_ms": 1.5, "slo_attained": None},
    {"id": "b", "adapter": "t", "text": "y", "token_ids": [], "ttft_ms": 2, "slo_attained": True}
    | {"metadata": {"a": [1, "x"]}},
]
EXPECTED = [
    ROWS[0] | {"metadata": None},
    ROWS[1] | {"metadata": '{"a":[1,"x"]}'},
]


def read(path: Path) -> list[dict[str, object]]:
    table = datasets.load_from_disk(path).data if path.is_dir() else parquet.read_table(path)
    return list(table.to_pylist())


@pytest.mark.parametrize("output_format", ["parquet", "dataset"])
def test_a_column_a_key(output_format: OutputFormat, tmp_path: Path) -> None:
    """Twice: a later session writes all of them again."""
    for rows in (ROWS[:1], ROWS):
        path = export_answers(lambda rows=rows: rows, tmp_path, output_format)  # type: ignore[misc]
        assert path is not None
    assert read(path) == EXPECTED
    assert [file.name for file in tmp_path.iterdir()] == [path.name], "no draft is left"


@pytest.mark.parametrize("output_format", ["parquet", "dataset"])
def test_no_answers_are_an_empty_table(output_format: OutputFormat, tmp_path: Path) -> None:
    path = export_answers(list, tmp_path, output_format)
    assert path is not None
    assert read(path) == []


def test_lines_are_there(tmp_path: Path) -> None:
    assert export_answers(lambda: ROWS, tmp_path, "jsonl") is None


def test_long_rows_are_written_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_BATCH_CHARS", 100)
    rows = [{"id": str(n), "text": "é" * 40, "token_ids": [n] * 10, "logprobs": [{"a": n}]} for n in range(7)]
    path = export_answers(lambda: rows, tmp_path, "parquet")
    assert path is not None
    assert read(path) == [row | {"logprobs": f'[{{"a":{n}}}]'} for n, row in enumerate(rows)]
    assert parquet.ParquetFile(path).num_row_groups == 4


def test_memory_does_not_grow(tmp_path: Path) -> None:
    def peak(num_rows: int) -> int:
        def rows() -> Iterator[dict[str, object]]:
            for number in range(num_rows):
                yield {"id": str(number), "text": "x" * 100}

        tracemalloc.start()
        export_answers(rows, tmp_path, "parquet")
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(10)  # imports
    assert peak(100_000) < 1.5 * peak(20_000)


def test_what_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "outputs.parquet.tmp").mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        export_answers(lambda: ROWS, tmp_path, "parquet")


@pytest.mark.parametrize("output_format", ["parquet", "dataset"])
def test_columns_without_a_value_have_the_type_of_those_with_one(
    output_format: OutputFormat, tmp_path: Path
) -> None:
    schemas = []
    for load_ms, attained in ((None, None), (3, True), (2.5, False)):
        rows = [{"id": "a", "load_ms": load_ms, "slo_attained": attained}]
        path = export_answers(lambda rows=rows: rows, tmp_path, output_format)  # type: ignore[misc]
        assert path is not None
        table = datasets.load_from_disk(path).data.table if path.is_dir() else parquet.read_table(path)
        schemas.append([(field.name, str(field.type)) for field in table.schema])
    assert schemas == [[("id", "string"), ("load_ms", "double"), ("slo_attained", "bool")]] * 3
