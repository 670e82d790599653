"""Answers as a Parquet file, or as a dataset for `datasets.load_from_disk`: a column a key of outputs.jsonl.

Memory does not grow with their number: they are read twice, first for the types of the columns.

Objects that have no fixed form, as `metadata`, are columns of JSON text. Knows no run.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import orjson

from caraserve_cli.errors import OutputError

if TYPE_CHECKING:
    import pyarrow

OutputFormat = Literal["jsonl", "parquet", "dataset"]
OUTPUT_FORMATS: tuple[OutputFormat, ...] = get_args(OutputFormat)

# Reads the answers from the first to the last, each time it is called.
ReadAnswers: TypeAlias = Callable[[], Iterable[Mapping[str, object]]]

PARQUET_NAME, DATASET_NAME = "outputs.parquet", "outputs"
_DRAFT_SUFFIX = ".tmp"
# Rows in one write, and a row group of Parquet; fewer where they are long, as with log-probabilities: 5 of
# each of 256 tokens are 350 kB a row as objects. Chosen, not measured.
_BATCH_ROWS = 10_000
_BATCH_CHARS = 16 * 2**20


def export_answers(read_answers: ReadAnswers, out_dir: Path, output_format: OutputFormat) -> Path | None:
    """Write the answers once more, in place of what an earlier session has written.

    Returns:
        What was written; None for JSONL, which is there.

    Raises:
        OutputError: it cannot be written.
    """
    if output_format == "jsonl":
        return None
    path = out_dir / (PARQUET_NAME if output_format == "parquet" else DATASET_NAME)
    try:
        (_write_parquet if output_format == "parquet" else _write_dataset)(read_answers, path)
    except OSError as error:
        raise OutputError(
            f"'{path}' cannot be written: {error.strerror or error}; the answers are in outputs.jsonl, and "
            "--resume tries again"
        ) from error
    return path


def _write_parquet(read_answers: ReadAnswers, path: Path) -> None:
    from pyarrow import parquet

    draft = path.with_name(path.name + _DRAFT_SUFFIX)
    schema, as_texts = _schema(read_answers())
    with parquet.ParquetWriter(draft, schema) as writer:
        for batch in _batches(read_answers(), schema, as_texts):
            writer.write_batch(batch)
    draft.replace(path)


def _write_dataset(read_answers: ReadAnswers, path: Path) -> None:
    import datasets
    import pyarrow

    datasets.disable_progress_bars()
    draft = path.with_name(path.name + ".arrow" + _DRAFT_SUFFIX)
    schema, as_texts = _schema(read_answers())
    with pyarrow.OSFile(str(draft), "wb") as file, pyarrow.ipc.new_stream(file, schema) as writer:
        for batch in _batches(read_answers(), schema, as_texts):
            writer.write_batch(batch)
    if path.exists():
        shutil.rmtree(path)
    has_rows = next(iter(read_answers()), None) is not None
    # `datasets` opens no file without rows, and no folder without a file.
    dataset = datasets.Dataset.from_file(str(draft)) if has_rows else datasets.Dataset.from_dict({"id": []})
    dataset.save_to_disk(path, num_shards=None if has_rows else 1)
    draft.unlink()


def _schema(rows: Iterable[Mapping[str, object]]) -> tuple[pyarrow.Schema, frozenset[str]]:
    """The columns in the order of the keys, and which of them hold JSON as text."""
    import pyarrow

    kinds: dict[str, set[str]] = {"id": set()}  # no table is without a column
    for row in rows:
        for key, value in row.items():
            kinds.setdefault(key, set()).add(_kind(value))
    types: dict[frozenset[str], Any] = {
        frozenset({"bool"}): pyarrow.bool_(),
        frozenset({"int"}): pyarrow.int64(),
        frozenset({"float"}): pyarrow.float64(),
        frozenset({"int", "float"}): pyarrow.float64(),
        frozenset({"str"}): pyarrow.string(),
        frozenset({"token_ids"}): pyarrow.list_(pyarrow.int64()),
    }
    empty = {"slo_attained": pyarrow.bool_()}
    found: dict[str, Any] = {}
    for key, seen in kinds.items():
        kind = frozenset(seen - {"null"})
        # Tables of two runs are of one form, also where no answer of one has a time.
        is_time = key.endswith("_ms") and kind <= {"int", "float"}
        found[key] = (
            pyarrow.float64() if is_time else types.get(kind) if kind else empty.get(key, pyarrow.string())
        )
    fields = [(key, pyarrow.string() if known is None else known) for key, known in found.items()]
    return pyarrow.schema(fields), frozenset(key for key, known in found.items() if known is None)


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool | int | float | str):
        return type(value).__name__
    if isinstance(value, list) and all(type(item) is int for item in value):
        return "token_ids"
    return "json"


def _batches(
    rows: Iterable[Mapping[str, object]], schema: pyarrow.Schema, as_texts: frozenset[str]
) -> Iterator[pyarrow.RecordBatch]:
    import pyarrow

    columns: dict[str, list[object]] = {key: [] for key in schema.names}
    num_rows = num_chars = 0
    for row in rows:
        for key, column in columns.items():
            value = row.get(key)
            column.append(_text(value) if key in as_texts else value)
            num_chars += len(column[-1]) if isinstance(column[-1], str | list) else 0
        num_rows += 1
        if num_rows >= _BATCH_ROWS or num_chars >= _BATCH_CHARS:
            yield pyarrow.RecordBatch.from_pydict(columns, schema=schema)
            columns, num_rows, num_chars = {key: [] for key in schema.names}, 0, 0
    if num_rows:
        yield pyarrow.RecordBatch.from_pydict(columns, schema=schema)


def _text(value: object) -> str | None:
    return None if value is None else orjson.dumps(value).decode()
