"""The strategies by their names, and what each says of an arrival."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from caraserve_cli.coldstart.break_even import BreakEven
from caraserve_cli.coldstart.policy import (
    COLD_START_NAMES,
    ColdStartPolicy,
    CpuAssist,
    Decision,
    make_policy,
)
from caraserve_cli.core import ColdStart
from caraserve_cli.errors import OptionError
from tests.coldstart.arrivals import alone, arrival
from tests.perf.h200 import h200_profile


def policy(name: str, gbps: float | None = None) -> ColdStartPolicy:
    profile = h200_profile()
    return make_policy(name, BreakEven(profile if gbps is None else profile.emulated(gbps)))


def test_every_strategy_is_made_by_its_name() -> None:
    assert set(COLD_START_NAMES) == {
        "auto", "stream", "cpu-assist", "on-demand", "on-demand-blocking", "cached",
    }  # fmt: skip
    assert [policy(name).name for name in COLD_START_NAMES] == list(COLD_START_NAMES)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("on-demand", ColdStart.ON_DEMAND),
        ("on-demand-blocking", ColdStart.ON_DEMAND_BLOCKING),
        ("stream", ColdStart.STREAM),
        ("cached", ColdStart.ON_DEMAND),
    ],
)
def test_strategies_that_need_no_model(name: str, how: ColdStart) -> None:
    assert make_policy(name, None).decide(arrival()) == Decision(how)


def test_auto_follows_the_break_even() -> None:
    assert policy("auto").decide(arrival()).how is ColdStart.STREAM
    assert policy("auto", 3).decide(alone(prompt_tokens=16)).how is ColdStart.CPU_ASSIST


def test_cpu_assist_bridges_what_the_link_lacks() -> None:
    """The first layer at least, which nobody has when the request begins; more over a slower link."""
    fast = policy("cpu-assist").decide(arrival(num_decoding=0))
    slow = policy("cpu-assist", 3).decide(arrival(prompt_tokens=16))
    assert fast == Decision(ColdStart.CPU_ASSIST, 1)
    assert slow.how is ColdStart.CPU_ASSIST
    assert slow.cpu_layers > 8


@pytest.mark.parametrize("changes", [{"can_assist": False}, {"free_workers": 0}])
def test_cpu_assist_streams_where_no_worker_can_help(changes: dict[str, int]) -> None:
    assert policy("cpu-assist", 3).decide(arrival(**changes)) == Decision(ColdStart.STREAM)


def test_cpu_assist_waits_for_no_link_that_it_does_not_know() -> None:
    assert CpuAssist(None).decide(arrival()) == Decision(ColdStart.CPU_ASSIST, 32)


def test_cpu_assist_loads_nothing_that_it_need_not() -> None:
    ending = arrival(may_spare_load=True)
    assert CpuAssist(None).decide(ending) == Decision(ColdStart.CPU_ASSIST, 32, spares_load=True)
    assert CpuAssist(None).decide(replace(ending, free_workers=0)) == Decision(ColdStart.STREAM)
    behind = alone(prompt_tokens=16, may_spare_load=True, link_backlog_ms=100.0)
    assert policy("cpu-assist", 3).decide(behind).spares_load


def test_an_unknown_strategy() -> None:
    with pytest.raises(
        OptionError, match=r"'magic'; choose from auto, stream, cpu-assist, on-demand, on-demand-blocking$"
    ):
        make_policy("magic", None)


def test_auto_without_a_profile() -> None:
    with pytest.raises(OptionError, match="'auto' needs a profile of this machine; run `caraserve profile`"):
        make_policy("auto", None)


def test_strategies_need_no_torch() -> None:
    """The simulator asks them by the thousand."""
    asks = "import sys, caraserve_cli.coldstart.policy; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", asks], check=False).returncode == 0
