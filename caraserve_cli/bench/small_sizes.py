"""How small a recipe becomes that is cut down, of whatever kind: where it runs, how often, and of how many
requests.
"""

from __future__ import annotations

from typing import TypedDict

from caraserve_cli.fleet.options import DeviceName, DtypeName
from caraserve_cli.job.sample import find_sample

# All chosen, not measured: each recipe is to take seconds.
MOST_REQUESTS = 6
PROMPT_TOKENS, OUTPUT_TOKENS = 16, 4
MOST_REPEATS = 2


class SmallRepeats(TypedDict):
    """Those keys of a recipe."""

    warmups: int
    repeats: int


def once() -> SmallRepeats:
    """One repeat, and no warm-up."""
    return SmallRepeats(warmups=0, repeats=1)


class SmallPlace(TypedDict):
    """Those keys of a recipe."""

    base: str
    device: DeviceName
    dtype: DtypeName


def small_place() -> SmallPlace:
    """The embedded sample's base in float32 on the CPU.

    Raises:
        InputError: this installation has no sample.
    """
    return SmallPlace(base=str(find_sample().base), device="cpu", dtype="float32")
