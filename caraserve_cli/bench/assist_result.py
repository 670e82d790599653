"""What a benchmark of CPU workers found: times, ratios, traces, a verdict. Knows no torch and no files."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from caraserve_cli.bench.assist_recipe import ASSIST, AssistCase
from caraserve_cli.bench.comparison import Spread, Verdict
from caraserve_cli.bench.engine_result import Limit, worst_verdict
from caraserve_cli.bench.kernel_result import verdict_on
from caraserve_cli.bench.result_facts import MeasuredFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class OpSpans:
    """One op of a traced prefill, in nanoseconds of the host's `perf_counter_ns`.

    Attributes:
        name: layer and modules.
        sending_ns: the device has come to it.
        sent_ns: its rows were seen to be there, from when on workers compute.
        product_begin_ns, product_end_ns: of the base's product.
        added_ns: the workers' result has been added.
        worker_end_ns: worker → when it was seen to have ended its part.
    """

    name: str
    sending_ns: int
    sent_ns: int
    product_begin_ns: int
    product_end_ns: int
    added_ns: int
    worker_end_ns: Mapping[int, int]

    @property
    def workers_end_ns(self) -> int:
        """When the last worker had ended."""
        return max(self.worker_end_ns.values(), default=self.sent_ns)

    @property
    def overlap_ns(self) -> int:
        """How long the base's product and a worker ran at once."""
        began_ns = max(self.product_begin_ns, self.sent_ns)
        return max(0, min(self.product_end_ns, self.workers_end_ns) - began_ns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """A traced prefill in a few numbers; times are of an op on average.

    Attributes:
        num_ops: traced.
        num_overlapping: in which the base's product and a worker ran at once.
        product_us: of the base's product.
        workers_us: from the rows' arrival until the last worker has ended.
        overlap_us: how long both ran at once.
    """

    num_ops: int
    num_overlapping: int
    product_us: float
    workers_us: float
    overlap_us: float

    @staticmethod
    def of(spans: Sequence[OpSpans]) -> Overlap:
        """Of at least one op."""
        return Overlap(
            num_ops=len(spans),
            num_overlapping=sum(op.overlap_ns > 0 for op in spans),
            product_us=statistics.fmean(op.product_end_ns - op.product_begin_ns for op in spans) / 1e3,
            workers_us=statistics.fmean(op.workers_end_ns - op.sent_ns for op in spans) / 1e3,
            overlap_us=statistics.fmean(op.overlap_ns for op in spans) / 1e3,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AssistTimes:
    """Medians, extremes and all repeats of a case; None where the device is a CPU, which has no graphs and
    where nothing is synchronised.

    Attributes:
        sync_free_ms: of a prefill, launched op by op.
        synchronised_ms: of a prefill, launched op by op, with explicit synchronisation.
        saved_ms: the difference, of each repeat.
        replayed_ms: of a prefill, replayed from a CUDA graph as a replica does it; not synchronised.
        workers_us: of an op without the base's product, sending and adding included.
        torch_us: of an op, by torch's own threads, copying the rows to the host and the result back included.
        torch_alone_us: the same without the copies, which workers have no way to leave out.
        speedup: `torch_us` over `workers_us`, of each repeat.
    """

    sync_free_ms: Spread
    synchronised_ms: Spread | None
    saved_ms: Spread | None
    replayed_ms: Spread | None
    workers_us: Spread
    torch_us: Spread
    torch_alone_us: Spread | None
    speedup: Spread


@dataclass(frozen=True, slots=True, kw_only=True)
class AssistCaseResult:
    """One case.

    Attributes:
        num_ops: of a prefill.
        op_flops: operations of an op on average, without the base's product.
        peak_flops_per_s: see `AssistFacts`.
        error: the largest difference of any way's result from the float32 reference, of the largest value.
        wrong: what is wrong with that; None if it is right.
        spans: the ops of one more prefill.
    """

    case: AssistCase
    num_ops: int
    op_flops: float
    peak_flops_per_s: float
    times: AssistTimes
    error: float
    wrong: str | None
    spans: tuple[OpSpans, ...]

    @property
    def name(self) -> str:
        return self.case.name

    @property
    def flops_per_s(self) -> float:
        """What the workers compute."""
        return self.op_flops / self.times.workers_us.median * 1e6

    @property
    def peak_share(self) -> float:
        """Of the rate of a large product."""
        return self.flops_per_s / self.peak_flops_per_s

    @property
    def overlap(self) -> Overlap:
        """The trace in a few numbers."""
        return Overlap.of(self.spans)

    def limits(self) -> Iterator[Limit]:
        """All that the recipe requires."""
        required, speedup, saved = self.case.limits, self.times.speedup.median, self.times.saved_ms
        if required.speedup_at_least is not None:
            at_least = required.speedup_at_least
            sentence = f"workers are {speedup:.2f}x as fast as torch; the recipe requires {at_least:g}x"
            yield Limit(speedup >= at_least, sentence)
        if required.peak_share_at_least is not None:
            at_least = required.peak_share_at_least
            sentence = (
                f"workers reach {self.peak_share:.1%} of a large product's rate; "
                f"the recipe requires {at_least:.1%}"
            )
            yield Limit(self.peak_share >= at_least, sentence)
        if required.saved_ms_at_least is not None and saved is not None:
            at_least = required.saved_ms_at_least
            sentence = f"not synchronising saves {saved.median:.3f} ms; the recipe requires {at_least:g} ms"
            yield Limit(saved.median >= at_least, sentence)

    def as_json(self) -> dict[str, object]:
        return {
            "name": self.name,
            **dataclasses.asdict(self.case),
            "num_ops": self.num_ops,
            "op_flops": self.op_flops,
            **dataclasses.asdict(self.times),
            "sync_free_op_us": 1e3 * self.times.sync_free_ms.median / self.num_ops,
            "repeats": len(self.times.workers_us.values),
            "flops_per_s": self.flops_per_s,
            "peak_share": self.peak_share,
            "trace": dataclasses.asdict(self.overlap),
            "error": self.error,
            "wrong": self.wrong,
            "verdict": verdict_on(self),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class AssistFacts(MeasuredFacts):
    """Under which circumstances was measured; see `MeasuredFacts`.

    Attributes:
        cpu: model of the processor.
        num_workers: each on a core of its own; torch has as many threads.
        compute_dtype: in which the workers multiply.
        num_adapters: in host memory.
        peak_flops_per_s: of a large product in that dtype, on so many threads.
    """

    device: str
    cpu: str
    base: str
    dtype: str
    compute_dtype: str
    modules: tuple[str, ...]
    warmups: int
    repeats: int
    num_workers: int
    tokens_per_worker: int
    num_adapters: int
    peak_flops_per_s: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AssistResult:
    """What a benchmark of CPU workers found, and where."""

    facts: AssistFacts
    cases: tuple[AssistCaseResult, ...]

    @property
    def verdict(self) -> Verdict:
        return worst_verdict(verdict_on(case) for case in self.cases)

    def as_json(self) -> dict[str, object]:
        """The content of the file that `--json` writes."""
        return {
            "kind": ASSIST,
            **self.facts.as_json(),
            "cases": [case.as_json() for case in self.cases],
            "verdict": self.verdict,
        }

    def trace_json(self) -> dict[str, object]:
        """One prefill of each case as Chrome and Perfetto read it: a process a case; the device's send, base
        product, wait and add in rows of their own, and each worker."""
        first_ns = min((op.sending_ns for case in self.cases for op in case.spans), default=0)
        events: list[dict[str, object]] = []
        for process, case in enumerate(self.cases):
            events.append(_named("process_name", process, 0, case.name))
            rows: dict[int, str] = {}
            for op in case.spans:
                for row, row_name, began_ns, ended_ns in _rows(op):
                    rows[row] = row_name
                    events.append(
                        {
                            "ph": "X",
                            "name": op.name,
                            "pid": process,
                            "tid": row,
                            "ts": (began_ns - first_ns) / 1e3,
                            "dur": max(0, ended_ns - began_ns) / 1e3,
                        }
                    )
            events += [_named("thread_name", process, row, name) for row, name in sorted(rows.items())]
        return {"traceEvents": events, "displayTimeUnit": "ms"}


def _rows(op: OpSpans) -> Iterator[tuple[int, str, int, int]]:
    """(row, its name, begin, end) of each span."""
    yield 0, "device: send rows", op.sending_ns, op.sent_ns
    yield 1, "device: base product", op.product_begin_ns, op.product_end_ns
    yield 2, "device: wait for workers, add", op.product_end_ns, op.added_ns
    for worker, end_ns in op.worker_end_ns.items():
        yield 3 + worker, f"worker {worker}", op.sent_ns, end_ns


def _named(kind: str, process: int, row: int, name: str) -> dict[str, object]:
    return {"ph": "M", "name": kind, "pid": process, "tid": row, "args": {"name": name}}
