"""When the rows of one run arrive, and with which of a trace's adapters: what its options come to."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from hashlib import blake2b

from caraserve_cli.errors import OptionError
from caraserve_cli.job.arrival_options import ArrivalOptions
from caraserve_cli.report.run_facts import printable
from caraserve_cli.requests.arrival_process import Arrival, gamma_ms, poisson_ms, trace_arrivals
from caraserve_cli.requests.arrival_trace import ArrivalTrace
from caraserve_cli.requests.stream import RowArrival

_BY_ROW = "arrival_ms of the request (default 0), counted from the start of the run"
_BY_PROCESS = "in the order of the file, counted from the start of the run"


class ArrivalPlan:
    """The arrivals of a run. The same options, seed and adapters plan the same ones, however often.

    Args:
        options: what the user asked for; a trace's file is read.
        seed: of the run.
        adapters: the names in the library, in order: the k-th most popular function of a trace has adapter
            k modulo their number.

    Raises:
        OptionError: the trace cannot be used, or there are no adapters for its functions.
    """

    def __init__(self, options: ArrivalOptions, seed: int, adapters: Sequence[str]) -> None:
        # Folders may have names that are no UTF-8, which no row could say and no answer repeat.
        adapters = [name for name in adapters if printable(name) == name]
        if options.trace_adapters and not adapters:
            raise OptionError("--trace-adapters: no adapters were found; check --adapters")
        self._options = options
        self._seed = seed
        self._adapters = adapters
        self._trace = None if options.trace is None else ArrivalTrace.read(options.trace)

    @property
    def is_by_process(self) -> bool:
        """Whether a process says when rows arrive, so that they arrive in the order of the file."""
        return self._options.process is not None

    @property
    def process(self) -> str | None:
        """The process in a line, with all beside the seed that times and adapters follow from; None where
        rows say."""
        options = self._options
        if options.process is None:
            return None
        parts: list[str] = [options.process]
        if options.rate_per_s is not None:
            parts.append(f"{_exact(options.rate_per_s)} requests/s")
        if options.process == "gamma":
            parts.append(f"burstiness {_exact(self._burstiness)}")
        if options.trace is not None and self._trace is not None:
            parts.append(f"{printable(str(options.trace.resolve()))} ({self._trace.digest})")
        if options.trace_adapters:
            names = blake2b("\0".join(self._adapters).encode(), digest_size=8)
            parts.append(f"its functions on {len(self._adapters)} adapters ({names.hexdigest()})")
        return ", ".join(parts)

    @property
    def _burstiness(self) -> float:
        return 1.0 if self._options.burstiness is None else self._options.burstiness

    @property
    def definition(self) -> str:
        """What a report says that arrival means."""
        process = self.process
        return _BY_ROW if process is None else f"{process}, seed {self._seed}; {_BY_PROCESS}"

    def row_arrivals(self) -> Iterator[RowArrival] | None:
        """What each row of the input gets, rejected ones included, from the first; None where rows say."""
        if self._options.process is None:
            return None
        return (RowArrival(arrival.ms, self._adapter(arrival.function)) for arrival in self._arrivals())

    def _arrivals(self) -> Iterator[Arrival]:
        options, seed = self._options, f"arrivals {self._seed}"
        if self._trace is not None:
            return trace_arrivals(self._trace, seed, options.rate_per_s)
        assert options.rate_per_s is not None, "of these processes the options require one"
        chosen = random.Random(seed)
        if options.process == "poisson":
            return map(Arrival, poisson_ms(chosen, options.rate_per_s))
        return map(Arrival, gamma_ms(chosen, options.rate_per_s, self._burstiness))

    def _adapter(self, function: int | None) -> str | None:
        if function is None or not self._options.trace_adapters:
            return None
        return self._adapters[function % len(self._adapters)]


def _exact(value: float) -> str:
    """All digits that tell the number from another one: 9, 0.1."""
    return str(value).removesuffix(".0")
