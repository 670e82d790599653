"""A profile on a terminal: every model with its quality, and the break-even chart."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

from rich.console import Console

from caraserve_cli.perf.profile import MachineProfile
from caraserve_cli.report.profile_terminal import render_profile
from tests.perf.h200 import h200_profile


def rendered(profile: MachineProfile) -> list[str]:
    console = Console(width=200, record=True, file=StringIO())
    console.print(render_profile(profile))
    return console.export_text().splitlines()


def row(lines: list[str], first: str) -> list[str]:
    return next(line for line in lines if line.strip().startswith(first)).split()


def test_every_model_has_its_quality() -> None:
    lines = rendered(h200_profile())
    names = (
        "link",
        "exchange with workers",
        "prefill step",
        "decode step",
        "LoRA on the CPU",
        "mbgmv kernel",
    )
    for name in names:
        r2, worst, points = row(lines, name)[len(name.split()) :][:3]
        assert 0.9 < float(r2) <= 1
        assert worst.endswith("%")
        assert int(points) >= 2


def test_the_chart_says_which_way_wins() -> None:
    assert row(rendered(h200_profile()), "128")[1:] == ["stream"] * 5
    slow = rendered(h200_profile().emulated(3))
    assert "link emulated at 3 GB/s" in slow[0]
    assert "cpu-assist" in row(slow, "16")
    assert "after" in row(slow, "512")  # held until the copies hide


def test_without_a_link_there_is_no_chart() -> None:
    lines = rendered(replace(h200_profile(), link=None, exchange=None))
    assert "No link: the base runs on the CPU, and adapters are used where they are." in lines
    assert not any("Break-even" in line for line in lines)
