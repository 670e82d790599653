"""The strategies that a recipe can compare, and the one place where a replica is told which to use.

`cached` is no strategy of a request: all adapters of a case are on the device before the clock starts. Nor is
what ends in `-unkept`: the strategy before that, on a device that keeps no adapter which no unfinished
request has, as systems without a cache of adapters do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol, runtime_checkable

from caraserve_cli.bench.recipe_table import RecipeTable
from caraserve_cli.errors import OptionError
from caraserve_cli.fleet.options import ColdStartName

CACHED = "cached"
AUTO: Final = "auto"
STREAM = "stream"
CPU_ASSIST: Final = "cpu-assist"
STRATEGIES = (CACHED, AUTO, STREAM, CPU_ASSIST, "on-demand", "on-demand-blocking")

_UNKEPT = "-unkept"

# What a replica does that cannot be told: it streams, and adapters that are there stay there.
_UNTOLD = (CACHED, STREAM)


@runtime_checkable
class _ToldStrategy(Protocol):
    def use_cold_start(self, name: str) -> None: ...


@runtime_checkable
class _ToldLink(Protocol):
    def emulate_link(self, gbps: float | None) -> None: ...


def check_replica(
    where: str, replica: type, strategies: Sequence[str], links_gbps: Sequence[float | None]
) -> None:
    """Refuse, before anything is started, what replicas of this type do not have.

    Raises:
        OptionError: a strategy, or an emulated link; `where` says in which recipe and case.
    """
    missing = [name for name in map(told_strategy, strategies) if name not in _UNTOLD]
    if missing and not issubclass(replica, _ToldStrategy):
        raise OptionError(f"{where}: 'strategies': the replica does not have '{missing[0]}'; leave it out")
    if any(links_gbps) and not issubclass(replica, _ToldLink):
        raise OptionError(f"{where}: 'emulate_link_gbps': the replica does not emulate a link; leave it out")


def use_cold_start(replica: object, strategy: str) -> None:
    """From now on cold adapters come to the device of a replica that was checked by this strategy."""
    if isinstance(replica, _ToldStrategy):
        replica.use_cold_start(told_strategy(strategy))


def keeps_adapters(strategy: str) -> bool:
    """Whether adapters may stay on the device when no unfinished request has them."""
    return not strategy.endswith(_UNKEPT)


def told_strategy(strategy: str) -> str:
    """What a replica is told to do."""
    return strategy.removesuffix(_UNKEPT)


def emulate_link(replica: object, link_gbps: float | None) -> None:
    """From now on the link of a replica that was checked has this bandwidth, in GB/s; None for its own."""
    if isinstance(replica, _ToldLink):
        replica.emulate_link(link_gbps)


def parse_strategies(table: RecipeTable, *, unkept: bool = False) -> tuple[str, ...]:
    """The key `strategies`: those to compare, in the order of the file; `unkept` allows those too that keep
    no adapters.

    Raises:
        OptionError: it is missing, or has a name that is none or stands twice.
    """
    strategies = table.texts("strategies")
    known = {*STRATEGIES, *(name + _UNKEPT for name in STRATEGIES[1:] if unkept)}
    if not strategies or len(set(strategies)) < len(strategies) or not set(strategies) <= known:
        must_be = f"a list of strategies without repetition, from {', '.join(STRATEGIES)}"
        raise table.wrong(
            "strategies", must_be + (f" (or auto{_UNKEPT}, …)" if unkept else ""), list(strategies)
        )
    return strategies


def start_with(strategies: Sequence[str]) -> ColdStartName:
    """What a replica that is told these strategies is started with, so that it has what they need."""
    return CPU_ASSIST if CPU_ASSIST in map(told_strategy, strategies) else AUTO


def link_words(link_gbps: float | None) -> str:
    """A link in a table: what is emulated is called so."""
    return "native link" if link_gbps is None else f"{link_gbps:g} GB/s emulated"


def rotated(strategies: Sequence[str], turn: int) -> tuple[str, ...]:
    """The strategies in the order of one turn: each comes first in one turn of several, so that none always
    follows the same other."""
    first = turn % len(strategies)
    return (*strategies[first:], *strategies[:first])
