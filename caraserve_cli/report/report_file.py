"""report.json on disk."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from caraserve_cli.errors import OutputError
from caraserve_cli.report.run_report import SCHEMA

REPORT_NAME = "report.json"


def write_report(report: Mapping[str, object], folder: Path) -> Path:
    """Write `folder`/report.json whole or not at all, and return its path.

    Raises:
        OutputError: the file cannot be written.
    """
    path = folder / REPORT_NAME
    partial = folder / f".{REPORT_NAME}.partial"
    try:
        with partial.open("wb") as file:
            file.write(orjson.dumps(report, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror}; make room or permit it, then run again with --resume"
        ) from error
    return path


def read_report(folder: Path) -> dict[str, Any]:
    """What `write_report` has written to a run's folder.

    Raises:
        OutputError: there is none that this version can show.
    """
    path = folder / REPORT_NAME
    try:
        report = orjson.loads(path.read_bytes())
    except NotADirectoryError:
        raise OutputError(f"'{folder}' is a file; name the folder of a run") from None
    except FileNotFoundError:
        if not folder.exists():
            raise OutputError(f"'{folder}' does not exist; name the folder of a run") from None
        raise OutputError(
            f"'{folder}' holds no {REPORT_NAME}; name the folder of a run that has ended, or end it with "
            "`caraserve run --resume`"
        ) from None
    except (OSError, orjson.JSONDecodeError) as error:
        raise OutputError(f"'{path}' cannot be read: {error}") from None
    if not isinstance(report, dict) or report.get("schema") != SCHEMA:
        raise OutputError(
            f"'{path}' was not written by this version of caraserve (schema {SCHEMA}); write it again with "
            "`caraserve run --resume`"
        )
    return report
