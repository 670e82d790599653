"""trace.json on disk."""

from __future__ import annotations

from pathlib import Path

import orjson

from caraserve_cli.errors import OutputError
from caraserve_cli.report.run_trace import RunTrace

TRACE_NAME = "trace.json"


def write_trace(trace: RunTrace, folder: Path) -> Path:
    """Write `folder`/trace.json whole or not at all, and return its path. A session in which nothing happened
    leaves the trace of the one before it.

    Raises:
        OutputError: the file cannot be written.
    """
    path, draft = folder / TRACE_NAME, folder / f".{TRACE_NAME}.partial"
    if trace.is_empty and path.exists():
        return path
    try:
        with draft.open("wb") as file:
            file.write(b'{"displayTimeUnit":"ms","otherData":' + orjson.dumps(trace.notes()))
            between = b',"traceEvents":[\n'
            for event in trace.events():
                file.write(between + orjson.dumps(event))
                between = b",\n"
            file.write(b"]}\n")
        draft.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; make room or permit it") from error
    return path
