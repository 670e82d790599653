"""report.json: what a run was, and how it went.

The one place that knows the report's schema. Knows neither how the numbers were collected (`summary`) nor
how they look to people (`terminal`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import orjson

from caraserve_cli.errors import OutputError
from caraserve_cli.report.cold_totals import ColdTotals
from caraserve_cli.report.distribution import QUANTILES, RELATIVE_ACCURACY, Distribution
from caraserve_cli.report.engine_totals import EngineTotals
from caraserve_cli.report.metrics import DEFINITIONS, per_second, share
from caraserve_cli.report.summary import RunSummary
from caraserve_cli.report.tally import Counts, Tally

SCHEMA = 2
REPORT_NAME = "report.json"

OptionScalar = str | int | float | bool | None
OptionValue = OptionScalar | Sequence[OptionScalar]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What a report says of the run that no request tells.

    `duration_s` runs from the first request to the last answer of this session, `startup_s` is the time
    before it; `memory` is how the device's memory was shared out; `resumed` says that earlier sessions
    answered a part; `num_late` counts requests of this session that were read too late, for they stood in
    the file behind many that arrive later. `arrival` tells what arrival means, `arrival_process` names the
    process that gave requests their arrival, None where they said it. `emulated_link_gbps` is the bandwidth
    that the device's link was slowed down to, None for its own. `machine` names hardware and versions.
    """

    caraserve_version: str
    base: str
    weights: Literal["checkpoint", "random"]
    device: str
    memory: str
    dtype: str
    requests_source: str
    adapter_folders: Sequence[str]
    num_adapters_found: int
    startup_s: float
    duration_s: float
    resumed: bool
    interrupted: bool
    num_late: int
    arrival: str
    options: Mapping[str, OptionValue]
    emulated_link_gbps: float | None = None
    arrival_process: str | None = None
    fleet: Mapping[str, object] | None = None
    machine: Mapping[str, OptionValue] = field(default_factory=dict)


def build_report(summary: RunSummary, facts: RunFacts, lora_ranks: Mapping[str, int]) -> dict[str, object]:
    """The report as JSON-ready data. Undefined values are None.

    Args:
        lora_ranks: the rank of each adapter of the library; one that is not in it any more (a resumed run
            whose folder lost it) is reported under lora_rank null. The base alone has lora_rank 0.
    """
    overall = _merged(summary.tallies.values())
    return {
        "schema": SCHEMA,
        "caraserve_version": facts.caraserve_version,
        "run": _run(facts),
        "definitions": {**DEFINITIONS, "arrival": facts.arrival},
        "requests": {
            "answered": summary.counts.answered,
            "failed": summary.num_failed,
            "submitted_late": facts.num_late,
            "by_finish_reason": dict(sorted(summary.by_finish_reason.items())),
            "by_cold_start": dict(sorted(summary.by_cold_start.items())),
            "failed_by_code": dict(sorted(summary.by_error_code.items())),
        },
        "tokens": {
            "prompt_tokens": summary.counts.prompt_tokens,
            "completion_tokens": summary.counts.completion_tokens,
        },
        "throughput": _throughput(summary, facts),
        "slo": _slo(summary.slo_carried, summary.slo_attained),
        "exact_match": _exact_match(summary.counts),
        "times": {
            "percentiles_relative_accuracy": RELATIVE_ACCURACY,
            **_distributions(overall.times),
        },
        "engine": _engine(summary.engine),
        "cold_starts": _cold_starts(summary.cold, summary.engine),
        "fleet": facts.fleet,
        "cold_starts_by_strategy": {
            name: {"answered": summary.cold.by_strategy[name], "times": _distributions(times)}
            for name, times in sorted(summary.cold.times_by_strategy.items())
        },
        "by_lora_rank": _by_lora_rank(summary.tallies, lora_ranks),
        "by_adapter": _by_adapter(summary.tallies, lora_ranks),
        "slowest": summary.slowest.as_json(),
        "deadline_slack": {
            **summary.slack.as_json(),
            "margin_ms": _distribution(summary.slack.margins_ms),
            "overrun_ms": _distribution(summary.slack.overruns_ms),
        },
        "histograms": {name: times.histogram() for name, times in overall.times.items()},
        "timeline": {"scope": "this session", **summary.timeline.as_json()},
    }


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
    except FileNotFoundError:
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


def printable(text: str) -> str:
    """`text` with the bytes of a file name that is no valid UTF-8 written out, as JSON needs it."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _option(value: OptionValue) -> object:
    if isinstance(value, str):
        return printable(value)
    return [_option(part) for part in value] if isinstance(value, Sequence) else value


def _run(facts: RunFacts) -> dict[str, object]:
    return {
        "base": printable(facts.base),
        "weights": facts.weights,
        "device": facts.device,
        "memory": facts.memory,
        "dtype": facts.dtype,
        "is_link_emulated": facts.emulated_link_gbps is not None,
        "emulated_link_gbps": facts.emulated_link_gbps,
        "requests_source": printable(facts.requests_source),
        "arrival": facts.arrival_process,
        "adapter_folders": [printable(folder) for folder in facts.adapter_folders],
        "num_adapters_found": facts.num_adapters_found,
        "startup_s": _rounded(facts.startup_s),
        "duration_s": _rounded(facts.duration_s),
        "resumed": facts.resumed,
        "interrupted": facts.interrupted,
        "machine": {name: _option(value) for name, value in facts.machine.items()},
        "options": {name: _option(value) for name, value in facts.options.items()},
    }


def _throughput(summary: RunSummary, facts: RunFacts) -> dict[str, object]:
    """Rates over this session only: earlier sessions' time is not known."""
    counts, duration_s = summary.session_counts, facts.duration_s
    goodput = per_second(counts.slo_attained, duration_s) if summary.slo_carried else None
    return {
        "scope": "this session" if facts.resumed else "the run",
        "answered": counts.answered,
        "requests_per_s": _rounded(per_second(counts.answered, duration_s)),
        "output_tokens_per_s": _rounded(per_second(counts.completion_tokens, duration_s)),
        "total_tokens_per_s": _rounded(
            per_second(counts.prompt_tokens + counts.completion_tokens, duration_s)
        ),
        "goodput_requests_per_s": _rounded(goodput),
    }


def _engine(totals: EngineTotals) -> dict[str, object]:
    return {
        "scope": "this session",
        "steps": totals.steps,
        "busy_ms": _rounded(totals.busy_ms),
        "prefill_tokens": totals.prefill_tokens,
        "decode_tokens": totals.decode_tokens,
        "dropped_tokens": totals.dropped_tokens,
        "prefix_cached_tokens": totals.prefix_cached_tokens,
        "preemptions": totals.preemptions,
        "memory_retries": totals.memory_retries,
        "adapter_loads": totals.adapter_loads,
        "adapter_load_ms": _rounded(totals.adapter_load_ms),
        "mean_running": _rounded(totals.mean_running),
        "peak_running": totals.peak_running,
        "peak_waiting": totals.peak_waiting,
        "peak_kv_blocks_used": totals.peak_kv_blocks_used,
        "kv_blocks": totals.kv_blocks,
        "peak_kv_use": _rounded(totals.peak_kv_use),
    }


def _cold_starts(cold: ColdTotals, totals: EngineTotals) -> dict[str, object]:
    """How adapters came to the device, and who waited for that."""
    return {
        "scope": "this session",
        "requests_with_adapter": cold.num_with_adapter,
        "hits": cold.num_hits,
        "hit_rate": _rounded(cold.hit_rate, 6),
        "loads": totals.adapter_loads,
        "loads_by_strategy": dict(sorted(totals.loads_by_strategy.items())),
        "bytes_moved": totals.adapter_bytes,
        "assists": totals.assists,
        "failed_assists": totals.failed_assists,
        "lost_workers": totals.lost_workers,
        "stall_ms": _rounded(totals.stall_ms),
        "others_stalled_ms": _rounded(totals.others_stalled_ms),
        "times": _distributions(cold.times),
    }


def _by_adapter(
    tallies: Mapping[str | None, Tally], lora_ranks: Mapping[str, int]
) -> list[dict[str, object]]:
    """One entry an adapter, the base (adapter null) first, then by name."""
    return [
        {"adapter": adapter, "lora_rank": _lora_rank(adapter, lora_ranks), **_group(tallies[adapter])}
        for adapter in sorted(tallies, key=lambda name: (name is not None, name or ""))
    ]


def _by_lora_rank(
    tallies: Mapping[str | None, Tally], lora_ranks: Mapping[str, int]
) -> list[dict[str, object]]:
    """One entry a rank, ascending, adapters of unknown rank (null) last."""
    groups: dict[int | None, list[Tally]] = {}
    for adapter, tally in tallies.items():
        groups.setdefault(_lora_rank(adapter, lora_ranks), []).append(tally)
    return [
        {"lora_rank": lora_rank, "adapters": len(groups[lora_rank]), **_group(_merged(groups[lora_rank]))}
        for lora_rank in sorted(groups, key=lambda value: (value is None, value or 0))
    ]


def _lora_rank(adapter: str | None, lora_ranks: Mapping[str, int]) -> int | None:
    return 0 if adapter is None else lora_ranks.get(adapter)


def _group(tally: Tally) -> dict[str, object]:
    """What is said of a group of answers. Failed rows name no adapter, so they are in no group."""
    counts = tally.counts
    return {
        "answered": counts.answered,
        "prompt_tokens": counts.prompt_tokens,
        "completion_tokens": counts.completion_tokens,
        "slo_of_answered": _slo(counts.slo_carried, counts.slo_attained),
        "exact_match": _exact_match(counts),
        "times": _distributions(tally.times),
    }


def _slo(carried: int, attained: int) -> dict[str, object]:
    return {"carried": carried, "attained": attained, "attainment": _rounded(share(attained, carried), 6)}


def _exact_match(counts: Counts) -> dict[str, object] | None:
    right, scored = counts.exact_match_right, counts.exact_match_scored
    return {"right": right, "scored": scored, "accuracy": _rounded(right / scored, 6)} if scored else None


def _distributions(times: Mapping[str, Distribution]) -> dict[str, object]:
    return {name: _distribution(distribution) for name, distribution in times.items()}


def _distribution(distribution: Distribution) -> dict[str, object]:
    return {
        "count": distribution.count,
        "mean": _rounded(distribution.mean),
        "min": _rounded(distribution.minimum),
        **{f"p{round(q * 100)}": _rounded(distribution.quantile(q)) for q in QUANTILES},
        "max": _rounded(distribution.maximum),
    }


def _merged(tallies: Iterable[Tally]) -> Tally:
    total = Tally()
    for tally in tallies:
        total.merge(tally)
    return total


def _rounded(value: float | None, digits: int = 3) -> float | None:
    """Microseconds are the finest that a clock of milliseconds can honestly tell."""
    return None if value is None else round(value, digits)
