"""How a run ended. Data and nothing but data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run leaves to say.

    Attributes:
        report: as written to report.json.
        num_rows: rows answered or rejected in this session.
        exported: the answers in another format, if one was asked for.
        num_late: those that were submitted late because of their place in the file.
    """

    report: dict[str, object]
    num_rows: int
    num_late: int
    exit_status: int
    exported: Path | None = None
