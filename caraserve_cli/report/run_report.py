"""report.json: what a run was, and how it went.

The one place that knows the report's schema. Knows neither how the numbers were collected (`summary`) nor
how they look to people (`terminal`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from caraserve_cli.report.answer_groups import (
    by_adapter,
    by_lora_rank,
    distribution_entries,
    distribution_entry,
    exact_match_entry,
    merged,
    rounded,
    slo_entry,
)
from caraserve_cli.report.cold_totals import ColdTotals
from caraserve_cli.report.distribution import RELATIVE_ACCURACY
from caraserve_cli.report.engine_totals import EngineTotals
from caraserve_cli.report.metrics import DEFINITIONS, per_second
from caraserve_cli.report.run_facts import OptionValue, RunFacts, printable
from caraserve_cli.report.summary import RunSummary

SCHEMA = 2


def build_report(summary: RunSummary, facts: RunFacts, lora_ranks: Mapping[str, int]) -> dict[str, object]:
    """The report as JSON-ready data. Undefined values are None.

    Args:
        lora_ranks: the rank of each adapter of the library; one that is not in it any more (a resumed run
            whose folder lost it) is reported under lora_rank null. The base alone has lora_rank 0.
    """
    overall = merged(summary.tallies.values())
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
        "slo": slo_entry(summary.slo_carried, summary.slo_attained),
        "exact_match": exact_match_entry(summary.counts),
        "times": {
            "percentiles_relative_accuracy": RELATIVE_ACCURACY,
            **distribution_entries(overall.times),
        },
        "engine": _engine(summary.engine),
        "cold_starts": _cold_starts(summary.cold, summary.engine),
        "cold_starts_by_strategy": {
            name: {"answered": summary.cold.by_strategy[name], "times": distribution_entries(times)}
            for name, times in sorted(summary.cold.times_by_strategy.items())
        },
        "fleet": facts.fleet,
        "step_predictions": summary.predictions.as_json(),
        "by_lora_rank": by_lora_rank(summary.tallies, lora_ranks),
        "by_adapter": by_adapter(summary.tallies, lora_ranks),
        "slowest": summary.slowest.as_json(),
        "failures": summary.failures.as_json(),
        "deadline_slack": {
            **summary.slack.as_json(),
            "margin_ms": distribution_entry(summary.slack.margins_ms),
            "overrun_ms": distribution_entry(summary.slack.overruns_ms),
        },
        "histograms": {name: times.histogram() for name, times in overall.times.items()},
        "timeline": {"scope": "this session", **summary.timeline.as_json()},
    }


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
        "startup_s": rounded(facts.startup_s),
        "duration_s": rounded(facts.duration_s),
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
        "requests_per_s": rounded(per_second(counts.answered, duration_s)),
        "output_tokens_per_s": rounded(per_second(counts.completion_tokens, duration_s)),
        "total_tokens_per_s": rounded(
            per_second(counts.prompt_tokens + counts.completion_tokens, duration_s)
        ),
        "goodput_requests_per_s": rounded(goodput),
    }


def _engine(totals: EngineTotals) -> dict[str, object]:
    return {
        "scope": "this session",
        "steps": totals.steps,
        "busy_ms": rounded(totals.busy_ms),
        "prefill_tokens": totals.prefill_tokens,
        "decode_tokens": totals.decode_tokens,
        "dropped_tokens": totals.dropped_tokens,
        "prefix_cached_tokens": totals.prefix_cached_tokens,
        "preemptions": totals.preemptions,
        "memory_retries": totals.memory_retries,
        "adapter_loads": totals.adapter_loads,
        "adapter_load_ms": rounded(totals.adapter_load_ms),
        "mean_running": rounded(totals.mean_running),
        "peak_running": totals.peak_running,
        "peak_waiting": totals.peak_waiting,
        "peak_kv_blocks_used": totals.peak_kv_blocks_used,
        "kv_blocks": totals.kv_blocks,
        "peak_kv_use": rounded(totals.peak_kv_use),
    }


def _cold_starts(cold: ColdTotals, totals: EngineTotals) -> dict[str, object]:
    """How adapters came to the device, and who waited for that."""
    # A CPU uses them where they are: there is no device that they could be on already.
    is_copied = totals.adapter_bytes > 0 or not totals.adapter_loads
    return {
        "scope": "this session",
        "requests_with_adapter": cold.num_with_adapter,
        "hits": cold.num_hits,
        "hit_rate": rounded(cold.hit_rate, 6) if is_copied else None,
        "loads": totals.adapter_loads,
        "loads_by_strategy": dict(sorted(totals.loads_by_strategy.items())),
        "spared_loads": totals.spared_loads,
        "bytes_moved": totals.adapter_bytes,
        "assists": totals.assists,
        "failed_assists": totals.failed_assists,
        "lost_workers": totals.lost_workers,
        "stall_ms": rounded(totals.stall_ms),
        "others_stalled_ms": rounded(totals.others_stalled_ms),
        "times": distribution_entries(cold.times),
    }
