"""The link: known lines, the link of hardware.md, and what is no link."""

from __future__ import annotations

import pytest

from caraserve_cli.errors import ProfileError
from caraserve_cli.perf.link import LinkModel
from tests.perf.h200 import LINK_POINTS

SIZES = [2**16, 2**20, 2**22, 2**26]


def test_a_known_link_is_found_again() -> None:
    link = LinkModel.fit("link", SIZES, [0.01 + size / 3e6 for size in SIZES])
    assert link.latency_ms == pytest.approx(0.01)
    assert link.gbps == pytest.approx(3)
    assert link.copy_ms(6_000_000) == pytest.approx(2.01)
    assert link.quality.r2 == pytest.approx(1)


def test_the_link_of_the_h200() -> None:
    """55 GB/s at the end; small copies are not lost beside large ones."""
    link = LinkModel.fit("link", list(LINK_POINTS), list(LINK_POINTS.values()))
    assert 50 < link.gbps < 57
    assert 0.01 < link.latency_ms < 0.03
    assert link.quality.r2 > 0.99
    assert link.copy_ms(adapter := 2**27) == pytest.approx(LINK_POINTS[adapter], rel=0.1)


def test_what_is_no_line_is_refused() -> None:
    with pytest.raises(ProfileError, match=r"^host to device: the 4 measured points .*caraserve profile"):
        LinkModel.fit("host to device", SIZES, [5.0, 0.1, 9.0, 0.2])


def test_a_slower_link_is_emulated_and_a_faster_one_is_not() -> None:
    link = LinkModel.fit("link", SIZES, [0.01 + size / 12e6 for size in SIZES])
    slower = link.emulated(3)
    assert slower.gbps == pytest.approx(3)
    assert slower.latency_ms == link.latency_ms
    assert link.emulated(25).gbps == pytest.approx(12)
