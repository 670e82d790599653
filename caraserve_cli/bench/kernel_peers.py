"""Others' operators: a peer that is not installed, or fails, never keeps ours from being measured."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

from caraserve_cli.bench.comparison import Spread
from caraserve_cli.bench.kernel_result import AS_OURS, PeerTime


class NotToldApartError(Exception):
    """A time that is the difference of two measured ones lies within its own spread, and may be below zero.

    Args:
        difference_us: of each repeat.
    """

    def __init__(self, difference_us: Spread) -> None:
        super().__init__(
            f"not told apart from noise: {difference_us.lowest:,.1f} to {difference_us.highest:,.1f} µs in "
            f"{len(difference_us.values)} repeats"
        )


def is_installed(package: str) -> bool:
    """Whether it can be imported; does not import it."""
    return importlib.util.find_spec(package) is not None


def measure_peer(name: str, measure: Callable[[], Spread], basis: str = AS_OURS) -> PeerTime:
    """The peer's time, or why there is none; for `basis` see `PeerTime`."""
    try:
        return PeerTime(name, measure(), basis=basis)
    except NotToldApartError as error:
        return PeerTime(name, None, str(error), basis)
    except Exception as error:
        first_line = (str(error).splitlines() or [""])[0]
        return PeerTime(name, None, f"{type(error).__name__}: {first_line}", basis)
