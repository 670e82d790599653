"""From arrivals to the table of a break-even grid and a verdict. Knows no torch and no files."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TypeAlias

from caraserve_cli.bench.arrival_recipe import ARRIVALS, Cell, GridKeys
from caraserve_cli.bench.arrival_runner import ArrivalRun
from caraserve_cli.bench.cold_starts import AUTO, CACHED
from caraserve_cli.bench.comparison import Verdict
from caraserve_cli.bench.confidence import Interval, mean_interval
from caraserve_cli.bench.engine_result import EngineFacts, worst_verdict

# Strategy -> its arrivals, as many as every other's, turn by turn.
CellRuns: TypeAlias = Mapping[str, Sequence[ArrivalRun]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mean:
    """A mean, and where it lies with 95% confidence; None for few values."""

    mean: float
    interval: Interval | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        return cls(mean=fmean(values), interval=mean_interval(values))


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategyArrivals:
    """One strategy in one cell.

    Attributes:
        ttft_ms: of the arrivals.
        others_tpot_ms: of the requests that decode beside them, from an arrival to its first token.
        cold_starts: how many of the arrivals' adapters came in which way.
    """

    ttft_ms: Mean
    others_tpot_ms: Mean
    cold_starts: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class CellResult:
    """One cell.

    Attributes:
        winner: the strategy with the lowest mean TTFT, but for `auto`, which chooses among them, and
            `cached`, which no cold request can have; None where there is no other.
        auto_more_ms: what the mean TTFT of `auto` has more than the winner's, turn by turn; None without one
            of them.
        auto_within: what `auto` may take, as a multiple of the winner; None where nothing is required.
    """

    cell: Cell
    strategies: Mapping[str, StrategyArrivals]
    winner: str | None
    auto_more_ms: Mean | None
    auto_within: float | None

    @property
    def auto_ratio(self) -> float | None:
        """The mean TTFT of `auto` as a multiple of the winner's."""
        if self.winner is None or self.auto_more_ms is None:
            return None
        return self.strategies[AUTO].ttft_ms.mean / self.strategies[self.winner].ttft_ms.mean

    @property
    def auto_ratio_of_both(self) -> float | None:
        """The product of both means of `auto`, TTFT and the others' TPOT, as a multiple of the least product
        of the other strategies: a strategy may buy one with the other."""
        if self.winner is None or AUTO not in self.strategies:
            return None
        products = {
            strategy: arrivals.ttft_ms.mean * arrivals.others_tpot_ms.mean
            for strategy, arrivals in self.strategies.items()
        }
        least = min(product for strategy, product in products.items() if strategy not in (AUTO, CACHED))
        return products[AUTO] / least

    @property
    def verdict(self) -> Verdict:
        """`auto` is near enough, or the difference may as well be none."""
        if self.auto_within is None:
            return Verdict.MET
        if self.auto_ratio is None or self.auto_more_ms is None:
            return Verdict.CANNOT_TELL
        interval = self.auto_more_ms.interval
        is_inside = interval is not None and interval.low <= 0
        return Verdict.MET if self.auto_ratio <= self.auto_within or is_inside else Verdict.MISSED

    def as_json(self) -> dict[str, object]:
        values = dataclasses.asdict(self)
        return {
            **values.pop("cell"),
            **values,
            "auto_ratio": self.auto_ratio,
            "auto_ratio_of_both": self.auto_ratio_of_both,
            "verdict": self.verdict,
        }


def judge_cell(cell: Cell, runs: CellRuns, auto_within: float | None) -> CellResult:
    """What the arrivals of a cell say, of which each strategy has at least one."""
    strategies = {
        strategy: StrategyArrivals(
            ttft_ms=Mean.of([each.ttft_ms for each in arrivals]),
            others_tpot_ms=Mean.of([each.others_tpot_ms for each in arrivals]),
            cold_starts=dict(Counter(each.cold_start for each in arrivals)),
        )
        for strategy, arrivals in runs.items()
    }
    fixed = [strategy for strategy in strategies if strategy not in (AUTO, CACHED)]
    winner = min(fixed, key=lambda strategy: strategies[strategy].ttft_ms.mean, default=None)
    more: Mean | None = None
    if winner is not None and AUTO in runs:
        pairs = zip(runs[AUTO], runs[winner], strict=True)
        more = Mean.of([ours.ttft_ms - best.ttft_ms for ours, best in pairs])
    return CellResult(
        cell=cell, strategies=strategies, winner=winner, auto_more_ms=more, auto_within=auto_within
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkResult:
    """The cells of one case; `link_gbps` is None for the machine's own link."""

    name: str
    link_gbps: float | None
    cells: tuple[CellResult, ...]

    def as_json(self) -> dict[str, object]:
        return {
            "name": self.name,
            "link_gbps": self.link_gbps,
            "is_link_emulated": self.link_gbps is not None,
            "cells": [cell.as_json() for cell in self.cells],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrivalResult:
    """What a break-even grid found, and where."""

    facts: EngineFacts
    grid: GridKeys
    links: tuple[LinkResult, ...]

    @property
    def verdict(self) -> Verdict:
        return worst_verdict(cell.verdict for link in self.links for cell in link.cells)

    def as_json(self) -> dict[str, object]:
        """The content of the file that `--json` writes."""
        return {
            "kind": ARRIVALS,
            **self.facts.as_json(),
            **dataclasses.asdict(self.grid),
            "cases": [link.as_json() for link in self.links],
            "verdict": self.verdict,
        }
