"""What a report says of a group of answers: of one adapter, of one LoRA rank, of all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from caraserve_cli.report.distribution import QUANTILES, Distribution
from caraserve_cli.report.metrics import share
from caraserve_cli.report.tally import Counts, Tally


def by_adapter(tallies: Mapping[str | None, Tally], lora_ranks: Mapping[str, int]) -> list[dict[str, object]]:
    """One entry an adapter, the base (adapter null) first, then by name."""
    return [
        {"adapter": adapter, "lora_rank": _lora_rank(adapter, lora_ranks), **_group(tallies[adapter])}
        for adapter in sorted(tallies, key=lambda name: (name is not None, name or ""))
    ]


def by_lora_rank(
    tallies: Mapping[str | None, Tally], lora_ranks: Mapping[str, int]
) -> list[dict[str, object]]:
    """One entry a rank, ascending, adapters of unknown rank (null) last."""
    groups: dict[int | None, list[Tally]] = {}
    for adapter, tally in tallies.items():
        groups.setdefault(_lora_rank(adapter, lora_ranks), []).append(tally)
    return [
        {"lora_rank": lora_rank, "adapters": len(groups[lora_rank]), **_group(merged(groups[lora_rank]))}
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
        "slo_of_answered": slo_entry(counts.slo_carried, counts.slo_attained),
        "exact_match": exact_match_entry(counts),
        "times": distribution_entries(tally.times),
    }


def slo_entry(carried: int, attained: int) -> dict[str, object]:
    """Who carried bounds and met them all."""
    return {"carried": carried, "attained": attained, "attainment": rounded(share(attained, carried), 6)}


def exact_match_entry(counts: Counts) -> dict[str, object] | None:
    """None where no answer could be compared with what was expected."""
    right, scored = counts.exact_match_right, counts.exact_match_scored
    return {"right": right, "scored": scored, "accuracy": rounded(right / scored, 6)} if scored else None


def distribution_entries(times: Mapping[str, Distribution]) -> dict[str, object]:
    """Of each time, by its name."""
    return {name: distribution_entry(distribution) for name, distribution in times.items()}


def distribution_entry(distribution: Distribution) -> dict[str, object]:
    """Count, mean, extremes and percentiles; None where there are no values."""
    return {
        "count": distribution.count,
        "mean": rounded(distribution.mean),
        "min": rounded(distribution.minimum),
        **{f"p{round(q * 100)}": rounded(distribution.quantile(q)) for q in QUANTILES},
        "max": rounded(distribution.maximum),
    }


def merged(tallies: Iterable[Tally]) -> Tally:
    """The tally of all answers of several."""
    total = Tally()
    for tally in tallies:
        total.merge(tally)
    return total


def rounded(value: float | None, digits: int = 3) -> float | None:
    """Microseconds are the finest that a clock of milliseconds can honestly tell."""
    return None if value is None else round(value, digits)
