from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from caraserve_cli.errors import OptionError
from caraserve_cli.job.arrival_options import ArrivalOptions

TRACE = Path("trace.csv")


@pytest.mark.parametrize(
    ("given", "process"),
    [
        ({}, None),
        ({"rate_per_s": 9.0}, "poisson"),
        ({"named": "poisson", "rate_per_s": 9.0}, "poisson"),
        ({"named": "gamma", "rate_per_s": 9.0}, "gamma"),
        ({"named": "gamma", "rate_per_s": 9.0, "burstiness": 3.0}, "gamma"),
        ({"named": "trace", "trace": TRACE}, "trace"),
        ({"named": "trace", "trace": TRACE, "rate_per_s": 9.0, "trace_adapters": True}, "trace"),
    ],
)
def test_what_fits_together(given: dict[str, Any], process: str | None) -> None:
    assert ArrivalOptions(**given).process == process


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rate_per_s": 0.0}, "--rate: must be above 0 requests a second, got 0"),
        ({"rate_per_s": -1.5}, "--rate: must be above 0 requests a second, got -1.5"),
        ({"rate_per_s": float("nan")}, "--rate: must be above 0 requests a second, got nan"),
        ({"rate_per_s": float("inf")}, "--rate: must be above 0 requests a second, got inf"),
        ({"named": "trace", "trace": TRACE, "rate_per_s": 0.0}, "--rate: must be above 0"),
        ({"named": "poisson"}, "--arrivals poisson: it needs --rate"),
        ({"named": "gamma"}, "--arrivals gamma: it needs --rate"),
        ({"named": "gamma", "burstiness": 2.0}, "--arrivals gamma: it needs --rate"),
        ({"named": "trace"}, "--arrivals trace: it needs --arrival-trace"),
        ({"named": "trace", "rate_per_s": 9.0}, "--arrivals trace: it needs --arrival-trace"),
        ({"burstiness": 2.0}, "--burstiness: it goes with --arrivals gamma"),
        ({"rate_per_s": 9.0, "burstiness": 2.0}, "--burstiness: it goes with --arrivals gamma"),
        ({"named": "trace", "trace": TRACE, "burstiness": 2.0}, "--burstiness: it goes with"),
        ({"named": "gamma", "rate_per_s": 9.0, "burstiness": 0.0}, "--burstiness: must be from 0.01 to 100"),
        ({"named": "gamma", "rate_per_s": 9.0, "burstiness": float("nan")}, "got nan"),
        ({"trace": TRACE}, "--arrival-trace: it goes with --arrivals trace"),
        ({"rate_per_s": 9.0, "trace": TRACE}, "--arrival-trace: it goes with --arrivals trace"),
        ({"trace_adapters": True}, "--trace-adapters: it goes with --arrivals trace"),
    ],
)
def test_what_does_not_is_refused_by_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as refused:
        ArrivalOptions(**given)
    assert message in str(refused.value)
    assert refused.value.exit_status == 2
