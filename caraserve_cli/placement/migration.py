"""What a placement moves between replicas after it was placed. Data and nothing but data."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias


class AdapterMigration(NamedTuple):
    """The device of replica `target` loads an adapter that requests from `source` will need there."""

    adapter: str
    source: int
    target: int


class RequestMigration(NamedTuple):
    """A request that waits on replica `source` waits on `target` from now on."""

    request_id: str
    source: int
    target: int


Migration: TypeAlias = AdapterMigration | RequestMigration
