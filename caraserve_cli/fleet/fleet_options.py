"""How many replicas there are, where, and how requests are placed on them, as the user asked for it."""

from __future__ import annotations

from dataclasses import dataclass

from caraserve_cli.errors import OptionError

# As `placement.catalogue` has them; here for the command line, which does not wait for numpy.
PLACEMENT_NAMES = ("first-fit", "random", "most-idle", "adapter-affinity", "dlora", "paper", "rank-aware")
DEFAULT_PLACEMENT = "rank-aware"
# Those that go by models of time.
MODEL_PLACEMENTS = ("dlora", "paper", "rank-aware")

# Of the two options, the one that asked for more than this process alone.
REPLICAS, RAY = "--replicas", "--ray"


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetOptions:
    """Options of a fleet.

    Attributes:
        replicas: how many; None for one, or with `ray` for as many as the cluster has GPUs, or machines where
            it has none.
        ray: the address of a Ray cluster; None for this machine.
        placement: by name, as given; None for the default.

    Raises:
        OptionError: a value is out of range.
    """

    replicas: int | None = None
    ray: str | None = None
    placement: str | None = None

    def __post_init__(self) -> None:
        if self.replicas is not None and self.replicas < 1:
            raise OptionError(f"--replicas: {self.replicas} is no number of replicas; give at least 1")
        if self.placement is not None and self.placement not in PLACEMENT_NAMES:
            raise OptionError(f"--placement: '{self.placement}' is none of {', '.join(PLACEMENT_NAMES)}")
        if self.ray is not None and "://" in self.ray:
            raise OptionError(
                f"--ray: '{self.ray}' is an address of Ray Client; run this on a machine of the cluster, "
                "with --ray auto or --ray HOST:PORT"
            )

    @property
    def is_local(self) -> bool:
        """Whether one replica in this process answers everything."""
        return self.ray is None and (self.replicas or 1) == 1

    @property
    def asked_by(self) -> str:
        """The option to name where the fleet cannot be had."""
        return REPLICAS if self.ray is None else RAY
