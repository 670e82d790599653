"""Others' operators: a peer that is not installed, or fails, never keeps ours from being measured."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

from caraserve_cli.bench.comparison import Spread
from caraserve_cli.bench.kernel_result import AS_OURS, PeerTime


def is_installed(package: str) -> bool:
    """Whether it can be imported; does not import it."""
    return importlib.util.find_spec(package) is not None


def measure_peer(name: str, measure: Callable[[], Spread], basis: str = AS_OURS) -> PeerTime:
    """The peer's time, or why there is none; for `basis` see `PeerTime`."""
    try:
        return PeerTime(name, measure(), basis=basis)
    except Exception as error:
        first_line = (str(error).splitlines() or [""])[0]
        return PeerTime(name, None, f"{type(error).__name__}: {first_line}", basis)
