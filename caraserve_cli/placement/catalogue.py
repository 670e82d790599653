"""The placements by name, as `--placement` takes them."""

from __future__ import annotations

from caraserve_cli.errors import OptionError
from caraserve_cli.placement.adapter_affinity import AdapterAffinityPlacement
from caraserve_cli.placement.dlora import DloraPlacement
from caraserve_cli.placement.first_fit import FirstFitPlacement
from caraserve_cli.placement.most_idle import MostIdlePlacement
from caraserve_cli.placement.paper import PaperPlacement
from caraserve_cli.placement.policy import Placement
from caraserve_cli.placement.random_choice import RandomPlacement
from caraserve_cli.placement.rank_aware import RankAwarePlacement

DEFAULT_PLACEMENT = RankAwarePlacement.name


def all_placements(seed: int = 0) -> tuple[Placement, ...]:
    """One of each; `seed` is that of the random one."""
    return (
        FirstFitPlacement(),
        RandomPlacement(seed),
        MostIdlePlacement(),
        AdapterAffinityPlacement(),
        DloraPlacement(),
        PaperPlacement(),
        RankAwarePlacement(),
    )


def placement(name: str, seed: int = 0) -> Placement:
    """The placement of this name.

    Raises:
        OptionError: there is none.
    """
    placements = {each.name: each for each in all_placements(seed)}
    if name not in placements:
        raise OptionError(f"--placement: '{name}' is none of {', '.join(placements)}")
    return placements[name]
