"""The rows of a dataset as lines in our own form, in bounded memory: Hugging Face's `datasets` streams them.

How a dataset is named: `dataset_path`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePath
from types import TracebackType
from typing import Any, Self

import orjson

from caraserve_cli.errors import InputError
from caraserve_cli.requests.columns import ColumnError, ColumnMap, value_of
from caraserve_cli.requests.dataset_path import BUILDERS, is_csv, is_saved, split_query
from caraserve_cli.requests.hub import HUB_PREFIX, open_on_hub, told_by_hub, wait_for_readers
from caraserve_cli.requests.row import BOUND_KEYS
from caraserve_cli.requests.source import MAX_LINE_BYTES, IsDone, RawLine

# Rows that are taken from a table at once. Chosen, not measured.
_BATCH_ROWS = 1000


class DatasetSource:
    """The rows of one dataset. Iterate once; close when done.

    `RawLine.number` is a row's number from 1. `total_bytes` and `bytes_read` count rows here: only their
    ratio is used, and 0 where the number of rows is not known.

    Args:
        source: see `dataset_path`.
        columns: which column is which key.

    Raises:
        InputError: it is missing, cannot be reached or read, or lacks a column; while iterating: it is
            damaged.
    """

    def __init__(self, source: str, columns: ColumnMap) -> None:
        self._source, self._name = source, f"dataset '{source}'"
        self._columns = columns
        self._is_on_hub = source.startswith(HUB_PREFIX)
        self.bytes_read = 0
        try:
            self._dataset, num_rows = _load(source, self._name)
            available = self._dataset.column_names or list(next(iter(self._dataset.take(1)), {}))
        except InputError:
            raise
        except Exception as error:  # `datasets` lets through what its readers and the hub's client raise
            raise self._failed("cannot be opened", error) from error
        self.total_bytes: int | None = num_rows
        used = columns.used_columns(available, self._name)
        self._dataset = self._dataset.select_columns(used)
        self._id_column = columns.id_column(used)
        path = split_query(source)[0]
        self._is_text = is_csv(path)
        self._is_arrow = not self._is_on_hub and _has_one_schema(Path(path))
        self._may_carry_bound = columns.has_any(BOUND_KEYS, used)
        self._is_done: IsDone | None = None
        self._iterator: Generator[RawLine] | None = None

    def pass_over(self, is_done: IsDone) -> None:
        """Of a batch of rows that are all done, only the column of ids is looked at."""
        self._is_done = is_done

    def place(self, number: int) -> str:
        """See `RequestSource`."""
        return f"{self._source}:{number}"

    def __iter__(self) -> Iterator[RawLine]:
        self._iterator = self._lines()
        return self._iterator

    def _lines(self) -> Generator[RawLine]:
        for batch in self._batches():
            done_ids = self._done_ids(batch)
            if done_ids is not None:
                for done_id in done_ids:
                    self.bytes_read += 1
                    yield RawLine(self.bytes_read, b"", done_id=done_id)
                continue
            rows = self._read(batch.to_pydict) if self._is_arrow else batch
            for values in zip(*rows.values(), strict=True):
                self.bytes_read += 1
                row = dict(zip(rows, values, strict=True))
                yield as_line(self.bytes_read, row, self._columns, is_text=self._is_text)

    def _done_ids(self, batch: Any) -> list[str] | None:
        """The ids of a batch's rows if all have one, and are done."""
        if self._is_done is None or self._id_column is None:
            return None
        column = batch[self._id_column]
        values = self._read(column.to_pylist) if self._is_arrow else column
        ids = [value_of("id", value) for value in values]
        done = [
            each
            for number, each in enumerate(ids, self.bytes_read + 1)
            if isinstance(each, str) and self._is_done(number, each, self._may_carry_bound)
        ]
        return done if len(done) == len(ids) else None

    def _batches(self) -> Iterator[Any]:
        """Tables of Arrow, or columns by name."""
        dataset = self._dataset.with_format("arrow") if self._is_arrow else self._dataset
        batches = iter(dataset.iter(batch_size=_BATCH_ROWS))
        while True:
            batch = self._read(lambda: next(batches, None))
            if batch is None:
                return
            yield batch

    def _read(self, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except Exception as error:  # of many libraries; texts that are no UTF-8
            raise self._failed(f"cannot be read beyond row {self.bytes_read}", error) from error

    def close(self) -> None:
        """Let go of what is read from; nothing reads ahead in it any more."""
        if self._iterator is None:
            return
        with suppress(ValueError):  # another thread is in the middle of it
            self._iterator.close()
        self._iterator = None
        if self._is_on_hub:
            wait_for_readers()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _failed(self, what: str, error: Exception) -> InputError:
        reason = " ".join(str(error).split()) or type(error).__name__
        advice = told_by_hub(error) if self._is_on_hub else ""
        return InputError(f"{self._name} {what}: {reason.rstrip('.')}{advice}")


def as_line(number: int, row: Mapping[str, object], columns: ColumnMap, *, is_text: bool = False) -> RawLine:
    """The line in our own form that a row of columns is; `is_text`: see `ColumnMap.request_of`."""
    try:
        request = columns.request_of(row, is_text=is_text)
    except ColumnError as error:
        return RawLine(number, b"", str(error))
    try:
        data = orjson.dumps(request, default=_text_of)
    except TypeError as error:  # nested too deeply, no UTF-8, integers beyond 64 bits
        return RawLine(number, b"", f"a column's value is no JSON: {error}")
    return RawLine(number, data if len(data) <= MAX_LINE_BYTES else None)


def _text_of(value: object) -> str:
    """Of dates, decimals and their like."""
    if isinstance(value, bytes):
        raise TypeError("bytes")
    return str(value)


def _load(source: str, name: str) -> tuple[Any, int]:
    """A dataset that streams, and its number of rows, 0 if that is not known."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    path, query = split_query(source)
    if source.startswith(HUB_PREFIX):
        loaded = _streamed(open_on_hub(path, query.get("config"), query.get("revision"), name))
    elif is_saved(Path(path)):
        loaded = datasets.load_from_disk(path)
    elif Path(path).is_file():
        suffix = PurePath(path).suffix.lower()
        options = _csv_options(path) if is_csv(path) else {}
        builder = datasets.load_dataset_builder(BUILDERS[suffix], data_files=_escaped(path), **options)
        loaded = _streamed(builder)
    else:
        # A path: `datasets` takes a bare `csv` for a kind of file.
        builder = datasets.load_dataset_builder(str(Path(path).resolve()), name=query.get("config"))
        loaded = _streamed(builder)
    chosen = _one_split(loaded, query.get("split"), name)
    is_counted = isinstance(chosen, datasets.Dataset)
    return (chosen.to_iterable_dataset(), len(chosen)) if is_counted else (chosen, 0)


def _streamed(builder: Any) -> Any:
    """All splits, streamed. A Parquet file is not buffered ahead: Arrow would keep all that it has read until
    the file's end (of 1,000,000 rows 71 MiB, and with this 6)."""
    if hasattr(builder.config, "fragment_scan_options"):
        from pyarrow.dataset import ParquetFragmentScanOptions

        builder.config.fragment_scan_options = ParquetFragmentScanOptions(pre_buffer=False)
    if hasattr(builder.config, "keep_default_na"):  # CSV: an adapter may be called NA
        builder.config.keep_default_na, builder.config.na_values = False, [""]
    return builder.as_streaming_dataset()


def _has_one_schema(path: Path) -> bool:
    """Whether all batches have the same types, so that they can be taken as they are stored."""
    return is_saved(path) or (path.is_file() and path.suffix.lower() in (".parquet", ".arrow"))


def _csv_options(path: str) -> dict[str, Any]:
    """All columns are text: guessed types make 7 of the id 007, and differ from one part of a file to the
    next."""
    import datasets
    import pandas

    separator = "\t" if PurePath(path).suffix.lower() == ".tsv" else ","
    names = pandas.read_csv(path, sep=separator, nrows=0).columns
    return {
        "sep": separator,
        "features": datasets.Features({name: datasets.Value("string") for name in names}),
    }


def _escaped(path: str) -> str:
    """`datasets` takes the names of files for patterns."""
    import glob

    return glob.escape(str(Path(path).resolve()))


def _one_split(loaded: Any, split: str | None, name: str) -> Any:
    if not isinstance(loaded, dict):  # saved without splits
        if split is not None:
            raise InputError(f"{name} has no splits; leave out ?split=")
        return loaded
    splits: Iterable[str] = list(loaded)
    if split is None and len(loaded) == 1:
        (split,) = splits
    if split is None or split not in loaded:
        said = "has several splits" if split is None else f"has no split '{split}'"
        raise InputError(f"{name} {said}; add ?split= with one of {', '.join(splits)}")
    return loaded[split]
