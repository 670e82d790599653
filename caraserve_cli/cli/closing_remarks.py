"""What is said on stderr below the summary of a run: what its user may not have meant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from caraserve_cli.errors import ExitStatus, RowErrorCode
from caraserve_cli.job.options import RunOptions
from caraserve_cli.job.run_result import RunResult


def closing_remarks(options: RunOptions, result: RunResult) -> list[str]:
    """A line each; none where all is as usual."""
    remarks = _of_adapters(result.report)
    if result.num_late:
        remarks.append(
            f"{result.num_late:,} rows were submitted late: they stand in the file behind rows that arrive "
            "later; sort the file by arrival_ms."
        )
    if not result.num_rows and result.exit_status != ExitStatus.INTERRUPTED:
        left = " that are not dealt with yet" if options.resume else ""
        remarks.append(f"Nothing to do: the input has no rows{left}.")
    return remarks


def _of_adapters(report: Mapping[str, Any]) -> list[str]:
    """There are some, and no row asks for any, which may have been forgotten."""
    num_found = report["run"]["num_adapters_found"]
    asked_for = {entry["adapter"] for entry in report["by_adapter"]}
    is_unknown = RowErrorCode.UNKNOWN_ADAPTER in report["requests"]["failed_by_code"]
    if not num_found or asked_for != {None} or is_unknown:
        return []
    which = "the one adapter" if num_found == 1 else f"any of the {num_found:,} adapters"
    return [
        f"No request names {which} below --adapters; the base alone answered. A row names its own by the key "
        '"adapter" (an OpenAI Batch line by "model"), and --adapter NAME is for rows without that.'
    ]
