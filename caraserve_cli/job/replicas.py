"""Who answers a run's requests."""

from __future__ import annotations

from collections.abc import Callable

from caraserve_cli.fleet.replica_source import LocalSource, ReplicaSource
from caraserve_cli.job.options import RunOptions


def open_replicas(options: RunOptions, on_note: Callable[[str], None]) -> ReplicaSource:
    """One engine in this process, or a fleet, of which nothing is imported otherwise.

    Args:
        options: of the run.
        on_note: told, in a line, what a user should know while replicas work.

    Raises:
        OptionError: an option cannot be met.
        InputError: the base or the cluster cannot be used.
    """
    if options.fleet.is_local:
        has_no_choice = options.fleet.placement is not None
        return LocalSource(
            options.replica,
            ["--placement: with one replica there is nothing to choose"] if has_no_choice else [],
        )
    from caraserve_cli.fleet.fleet_source import FleetSource

    return FleetSource(options.replica, options.fleet, on_note)
