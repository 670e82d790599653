"""What a benchmark of operators found: times, floors, peers, a verdict. Knows no torch and no files."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from caraserve_cli.bench.comparison import Spread, Verdict
from caraserve_cli.bench.engine_result import Limit, worst_verdict
from caraserve_cli.bench.kernel_cases import FitCase, FormsCase, LoadCase, TimeLimits
from caraserve_cli.bench.kernel_recipe import KERNELS
from caraserve_cli.bench.result_facts import MeasuredFacts
from caraserve_cli.perf.least_squares import Line

# A peer's `basis` where it was timed as ours was: in the same sort of graph, on data of the same sizes.
AS_OURS = "as ours"


class CaseResult(Protocol):
    """What every section says of one of its cases."""

    @property
    def name(self) -> str: ...
    @property
    def wrong(self) -> str | None: ...
    def limits(self) -> Iterator[Limit]: ...
    def as_json(self) -> dict[str, object]: ...


def verdict_on(case: CaseResult) -> Verdict:
    """A wrong operator's time says nothing."""
    if case.wrong is not None:
        return Verdict.CANNOT_TELL
    return Verdict.MET if all(limit.is_met for limit in case.limits()) else Verdict.MISSED


@dataclass(frozen=True, slots=True)
class PeerTime:
    """Another's operator for the same work.

    Attributes:
        problem: why there is no time; None if there is one.
        basis: how its time came about, if not as ours did.
    """

    name: str
    time_us: Spread | None
    problem: str | None = None
    basis: str = AS_OURS

    def as_json(self) -> dict[str, object]:
        return {**dataclasses.asdict(self), "repeats": _num_repeats(self.time_us)}


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorResult:
    """One operator of ours.

    Attributes:
        time_us: of a layer; of a step for LoRA.
        floor_us: the least time that its work can take, see the module that measured it.
        error: the largest difference from the float32 reference, of the largest value.
        wrong: what is wrong with that; None if it is right.
    """

    name: str
    time_us: Spread
    floor_us: float
    peers: tuple[PeerTime, ...]
    error: float
    wrong: str | None
    required: TimeLimits

    @property
    def times_floor(self) -> float:
        return self.time_us.median / self.floor_us

    def limits(self) -> Iterator[Limit]:
        """All that the recipe requires."""
        time_us, at_most_us, at_most = self.time_us.median, self.required.at_most_us, self.required.at_most
        if at_most_us is not None:
            sentence = f"takes {time_us:,.2f} µs; the recipe allows {at_most_us:g} µs"
            yield Limit(time_us <= at_most_us, sentence)
        if at_most is not None:
            sentence = f"takes {self.times_floor:.3f}x its floor; the recipe allows {at_most:g}x"
            yield Limit(self.times_floor <= at_most, sentence)

    def as_json(self) -> dict[str, object]:
        values = dataclasses.asdict(self)
        return {
            **values,
            "peers": [peer.as_json() for peer in self.peers],
            "repeats": _num_repeats(self.time_us),
            "times_floor": self.times_floor,
            "verdict": verdict_on(self),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class FormsResult:
    """A step in both forms; `bgmv_over_mbgmv` is of each repeat."""

    case: FormsCase
    mbgmv_us: Spread
    bgmv_us: Spread
    bgmv_over_mbgmv: Spread
    wrong: str | None

    @property
    def name(self) -> str:
        return self.case.name

    def limits(self) -> Iterator[Limit]:
        """All that the recipe requires."""
        ratio, at_least, at_most = (
            self.bgmv_over_mbgmv.median,
            self.case.bgmv_at_least,
            self.case.mbgmv_at_most,
        )
        if at_least is not None:
            sentence = f"bgmv takes {ratio:.3f}x the time of mbgmv; the recipe requires {at_least:g}x"
            yield Limit(ratio >= at_least, sentence)
        if at_most is not None:
            sentence = f"mbgmv takes {1 / ratio:.3f}x the time of bgmv; the recipe allows {at_most:g}x"
            yield Limit(1 / ratio <= at_most, sentence)

    def as_json(self) -> dict[str, object]:
        return {
            **_flattened(self),
            "repeats": _num_repeats(self.bgmv_over_mbgmv),
            "verdict": verdict_on(self),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class FitPoint:
    """One batch of the fit: its adapters' ranks, and the median time of its step in both forms."""

    mix: str
    batch_size: int
    largest_rank: int
    sum_of_ranks: int
    mbgmv_us: float
    bgmv_us: float

    @property
    def padded_ranks(self) -> int:
        """What the padded form computes: all adapters with the largest rank."""
        return self.batch_size * self.largest_rank


@dataclass(frozen=True, slots=True, kw_only=True)
class FitResult:
    """Lines through the times of both forms: mbgmv over the sum of the ranks, bgmv over the padded ranks.

    Attributes:
        repeats: measured runs of each point.
    """

    case: FitCase
    repeats: int
    points: tuple[FitPoint, ...]
    mbgmv: Line
    bgmv: Line
    wrong: str | None

    @property
    def name(self) -> str:
        return self.case.name

    def limits(self) -> Iterator[Limit]:
        """All that the recipe requires."""
        at_least = self.case.r2_at_least
        if at_least is not None:
            for form, line in (("mbgmv", self.mbgmv), ("bgmv", self.bgmv)):
                sentence = f"R² of {form} is {line.r2:.4f}; the recipe requires {at_least:g}"
                yield Limit(line.r2 >= at_least, sentence)

    def as_json(self) -> dict[str, object]:
        return {**_flattened(self), "verdict": verdict_on(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """An adapter's way to the device, beside contiguous copies of as many bytes.

    Attributes:
        adapter_bytes: of the whole adapter.
        adapter_us: a load of the pool, until all has arrived: every group of layers, and its table.
        layer_us: one layer of it, by itself; `contiguous_layer_us` as many bytes.
        adapter_ratio, layer_ratio: of each repeat, over the contiguous copies.
    """

    case: LoadCase
    adapter_bytes: int
    adapter_us: Spread
    contiguous_us: Spread
    adapter_ratio: Spread
    layer_us: Spread
    contiguous_layer_us: Spread
    layer_ratio: Spread
    wrong: str | None

    @property
    def name(self) -> str:
        return self.case.name

    def limits(self) -> Iterator[Limit]:
        """All that the recipe requires."""
        at_most, ratio = self.case.layer_at_most, self.layer_ratio.median
        if at_most is not None:
            sentence = f"a layer takes {ratio:.3f}x a contiguous copy; the recipe allows {at_most:g}x"
            yield Limit(ratio <= at_most, sentence)

    def as_json(self) -> dict[str, object]:
        return {**_flattened(self), "repeats": _num_repeats(self.adapter_ratio), "verdict": verdict_on(self)}


def _num_repeats(measured: Spread | None) -> int:
    """Measured runs behind a time."""
    return 0 if measured is None else len(measured.values)


def _flattened(result: FormsResult | FitResult | LoadResult) -> dict[str, object]:
    """The case's own keys first, then what was measured."""
    values = dataclasses.asdict(result)
    return {"name": result.name, **values.pop("case"), **values}


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelFacts(MeasuredFacts):
    """Under which circumstances was measured; see `MeasuredFacts`.

    Attributes:
        most_repeats: what the recipe asks for; what takes long has fewer, and each result says how many.
    """

    device: str
    base: str
    dtype: str
    modules: tuple[str, ...]
    most_repeats: int
    copy_bytes_per_s: float
    product_flops_per_s: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelResult:
    """What a benchmark of operators found, and where."""

    facts: KernelFacts
    products: tuple[OperatorResult, ...]
    attention: tuple[OperatorResult, ...]
    lora: tuple[OperatorResult, ...]
    forms: tuple[FormsResult, ...]
    fit: tuple[FitResult, ...]
    loads: tuple[LoadResult, ...]

    @property
    def sections(self) -> dict[str, tuple[CaseResult, ...]]:
        """Name → cases, in the order of measuring; without those that the recipe leaves out."""
        sections: dict[str, tuple[CaseResult, ...]] = {
            "products": self.products,
            "attention": self.attention,
            "lora": self.lora,
            "forms": self.forms,
            "fit": self.fit,
            "loads": self.loads,
        }
        return {name: cases for name, cases in sections.items() if cases}

    @property
    def verdict(self) -> Verdict:
        return worst_verdict(verdict_on(case) for cases in self.sections.values() for case in cases)

    def as_json(self) -> dict[str, object]:
        """The content of the file that `--json` writes."""
        return {
            "kind": KERNELS,
            **self.facts.as_json(),
            **{name: [case.as_json() for case in cases] for name, cases in self.sections.items()},
            "verdict": self.verdict,
        }
