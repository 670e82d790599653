"""The output folder of a run: what was answered, what was rejected, and how to go on after a kill -9.

    run.json        what identifies the run (`manifest`)
    outputs.jsonl   one line per answered request
    errors.jsonl    one line per rejected or failed row
    errors.before-retry.jsonl   what that held when such rows were tried again

Knows ids and line numbers; does not know how answers are made or what a report says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from caraserve_cli.errors import OutputError, RowErrorCode
from caraserve_cli.requests.id_table import IdTable
from caraserve_cli.requests.manifest import (
    MANIFEST_DRAFT_NAME,
    MANIFEST_NAME,
    Update,
    check_manifest,
    resume_command,
    write_manifest,
)
from caraserve_cli.requests.openai_output import error_row, native_form
from caraserve_cli.requests.row_file import RowFile

OUTPUTS_NAME = "outputs.jsonl"
ERRORS_NAME = "errors.jsonl"
ERRORS_BEFORE_NAME = "errors.before-retry.jsonl"


class Journal:
    """The rows of one run on disk, and which of them an earlier, unfinished run has left.

    Rows are written by the next `flush` (call it once an engine step); from then on they survive kill -9.
    """

    def __init__(self, outputs: RowFile, errors: RowFile) -> None:
        self._outputs = outputs
        self._errors = errors
        self._answered_ids = IdTable()
        self._rejected_rows = IdTable()

    @classmethod
    def open(
        cls,
        out_dir: Path,
        manifest: Mapping[str, object],
        *,
        resume: bool = False,
        retry_errors: bool = False,
        update: Update = dict,
        command: str | None = None,
    ) -> Journal:
        """Take an output folder, making it if it is missing, and repair what a killed run left torn.

        A folder that holds no row yet counts as empty, so that a run which died while starting needs no
        `resume`.

        Args:
            out_dir: the folder.
            manifest: whatever changes the answers or which rows there are; kept in run.json.
            resume: go on with the rows that the folder holds, if its manifest is the same.
            retry_errors: set the rejected rows aside, so that they are tried again.
            update: what makes the folder's manifest, if another version wrote it, comparable.
            command: the command line that goes on with the run, for whoever has to.

        Raises:
            OutputError: the folder cannot be used, is not empty (without `resume`), belongs to something
                else or to a run with another manifest, is damaged, or is in use by another run.
        """
        try:
            out_dir.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise OutputError(f"'{out_dir}' is a file; choose another --out") from None
        except OSError as error:
            raise OutputError(f"output folder '{out_dir}' cannot be made: {error.strerror}") from None
        _check_usable(out_dir, resume)
        outputs = RowFile(out_dir / OUTPUTS_NAME)
        try:
            outputs.lock()
            # Again, now that nobody else can write: another run may have come and gone in between.
            is_blank = _check_usable(out_dir, resume)
            if not is_blank:
                check_manifest(out_dir, manifest, update, typed=command)
            errors = RowFile(out_dir / ERRORS_NAME)
        except BaseException:
            outputs.close()
            raise
        journal = cls(outputs, errors)
        try:
            if is_blank:
                write_manifest(out_dir, manifest, command)
            if retry_errors:
                errors.set_aside(out_dir / ERRORS_BEFORE_NAME)
            journal._load()
        except BaseException:
            journal.close()
            raise
        return journal

    @property
    def num_answers(self) -> int:
        """Rows in outputs.jsonl, those of earlier runs included."""
        return self._outputs.num_rows

    @property
    def num_errors(self) -> int:
        """Rows in errors.jsonl, those of earlier runs included."""
        return self._errors.num_rows

    def is_answered(self, request_id: str) -> bool:
        """Whether the folder held an answer to this id when it was opened."""
        return request_id.encode() in self._answered_ids

    def is_rejected(self, line: int, request_id: str | None) -> bool:
        """Whether the folder held an error of this row when it was opened.

        A row is known by its line number *and* its id: neither a line inserted further up nor a duplicate id
        further down may silence a row that was never tried.
        """
        return _row_key(line, request_id) in self._rejected_rows

    def is_rejected_id(self, request_id: str) -> bool:
        """The same of the first row with this id, wherever it stands now."""
        return _id_key(request_id) in self._rejected_rows

    def write_answer(self, row: Mapping[str, object]) -> None:
        """Add a line to outputs.jsonl (see `answer.answer_row`)."""
        self._outputs.append(row)

    def write_error(
        self, line: int, request_id: str | None, code: str, message: str, *, is_batch: bool = False
    ) -> None:
        """Add a line to errors.jsonl, in our own form or in that of OpenAI's Batch."""
        self._errors.append(error_row(line, request_id, code, message, is_batch=is_batch))

    def flush(self) -> None:
        """Hand the rows written so far to the kernel: one write per file.

        Raises:
            OutputError: the disk is full or failed. Whole rows stay whole; the run can be resumed.
        """
        self._outputs.flush()
        self._errors.flush()

    def sync(self) -> None:
        """Have the disk hold all rows, so that they outlive a loss of power.

        Raises:
            OutputError: as `flush`.
        """
        self._outputs.sync()
        self._errors.sync()

    def answers(self) -> Iterator[Mapping[str, object]]:
        """Every line of outputs.jsonl in our own form, those of earlier runs included."""
        return map(native_form, self._outputs.rows())

    def errors(self) -> Iterator[Mapping[str, object]]:
        """Every line of errors.jsonl in our own form, those of earlier runs included."""
        return map(native_form, self._errors.rows())

    def close(self) -> None:
        """Flush, close, and let other runs have the folder; closing twice is no error."""
        try:
            self._errors.close()
        finally:
            self._outputs.close()  # last: it holds the lock

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _load(self) -> None:
        for row in self._outputs.recover():
            request_id = _native(row, self._outputs).get("id")
            if not isinstance(request_id, str):
                raise _foreign(self._outputs)
            self._answered_ids.add(request_id.encode())
        for row in self._errors.recover():
            native = _native(row, self._errors)
            line, request_id = native.get("line"), native.get("id")
            if not isinstance(line, int) or not isinstance(request_id, str | None):
                raise _foreign(self._errors)
            self._rejected_rows.add(_row_key(line, request_id))
            if request_id is not None and native.get("code") != RowErrorCode.DUPLICATE_ID:
                self._rejected_rows.add(_id_key(request_id))


def _check_usable(out_dir: Path, resume: bool) -> bool:
    """Whether a folder is blank, that is, holds no row and nothing foreign.

    Raises:
        OutputError: it is not blank and may not be continued.
    """
    try:
        entries = list(out_dir.iterdir())
        row_files = [entry for entry in entries if entry.name in (OUTPUTS_NAME, ERRORS_NAME)]
        others = {entry.name for entry in entries} - {OUTPUTS_NAME, ERRORS_NAME}
        has_rows = any(entry.stat().st_size for entry in row_files)
    except OSError as error:
        raise OutputError(f"output folder '{out_dir}' cannot be read: {error.strerror}") from None
    if not has_rows and others <= {MANIFEST_NAME, MANIFEST_DRAFT_NAME}:
        return True
    if MANIFEST_NAME not in others:
        raise OutputError(
            f"'{out_dir}' is not empty and holds no {MANIFEST_NAME}: not a run's folder; choose another --out"
        )
    if not resume:
        how = resume_command(out_dir)
        raise OutputError(f"'{out_dir}' is not empty; continue its run with {how}, or choose another --out")
    return False


def _row_key(line: int, request_id: str | None) -> bytes:
    return f"{line}:{'' if request_id is None else request_id}".encode()


def _id_key(request_id: str) -> bytes:
    return f":{request_id}".encode()


def _native(row: Mapping[str, object], file: RowFile) -> Mapping[str, object]:
    try:
        return native_form(row)
    except (KeyError, IndexError, TypeError):
        raise _foreign(file) from None


def _foreign(file: RowFile) -> OutputError:
    return OutputError(
        f"'{file.path}' line {file.num_rows} was not written by caraserve; choose another --out"
    )
