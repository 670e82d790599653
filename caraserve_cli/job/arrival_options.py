"""How requests arrive, as the user asked for it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from caraserve_cli.errors import OptionError

ArrivalProcessName = Literal["poisson", "gamma", "trace"]

# Beyond these a gamma process is either a metronome, or one burst and then nothing.
_LEAST_BURSTINESS, _MOST_BURSTINESS = 0.01, 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrivalOptions:
    """Options of the arrival process. Without any of them, rows arrive when they say.

    Attributes:
        named: the process that `--arrivals` names; None where it is left out.
        rate_per_s: the mean of requests per second; None where rows or the trace say.
        burstiness: the coefficient of variation of a gamma process' gaps; None is 1.
        trace: the file of a trace.
        trace_adapters: whether rows that name no adapter have that of the trace's function.

    Raises:
        OptionError: they do not fit together, or a number is out of range.
    """

    named: ArrivalProcessName | None = None
    rate_per_s: float | None = None
    burstiness: float | None = None
    trace: Path | None = None
    trace_adapters: bool = False

    def __post_init__(self) -> None:
        rate_per_s, burstiness = self.rate_per_s, self.burstiness
        if rate_per_s is not None and not 0 < rate_per_s < math.inf:
            raise OptionError(f"--rate: must be above 0 requests a second, got {rate_per_s:g}")
        if burstiness is not None and self.process != "gamma":
            raise OptionError("--burstiness: it goes with --arrivals gamma")
        if burstiness is not None and not _LEAST_BURSTINESS <= burstiness <= _MOST_BURSTINESS:
            raise OptionError(
                f"--burstiness: must be from {_LEAST_BURSTINESS:g} to {_MOST_BURSTINESS:g}, "
                f"got {burstiness:g}"
            )
        if self.process in ("poisson", "gamma") and rate_per_s is None:
            raise OptionError(f"--arrivals {self.process}: it needs --rate, the mean of requests a second")
        if self.process == "trace" and self.trace is None:
            raise OptionError("--arrivals trace: it needs --arrival-trace, the file with the trace")
        for option, is_given in (
            ("--arrival-trace", self.trace is not None),
            ("--trace-adapters", self.trace_adapters),
        ):
            if is_given and self.process != "trace":
                raise OptionError(f"{option}: it goes with --arrivals trace")

    @property
    def process(self) -> ArrivalProcessName | None:
        """The process that gives the rows their times; None where they say them themselves."""
        return self.named or (None if self.rate_per_s is None else "poisson")
