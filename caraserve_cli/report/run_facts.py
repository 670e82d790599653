"""What a report says of a run that no request tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

OptionScalar = str | int | float | bool | None
OptionValue = OptionScalar | Sequence[OptionScalar]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What a report says of the run that no request tells.

    `duration_s` runs from the first request to the last answer of this session, `startup_s` from the start of
    the command until then, without the wait for rows; `memory` is how the device's memory was shared out;
    `resumed` says that earlier sessions answered a part; `num_late` counts requests of this session that were
    read too late, for they stood in the file behind many that arrive later. `arrival` tells what arrival
    means, `arrival_process` names the process that gave requests their arrival, None where they said it.
    `emulated_link_gbps` is the bandwidth that the device's link was slowed down to, None for its own.
    `machine` names hardware and versions.
    """

    caraserve_version: str
    base: str
    weights: Literal["checkpoint", "random"]
    device: str
    memory: str
    dtype: str
    requests_source: str
    adapter_folders: Sequence[str]
    num_adapters_found: int
    startup_s: float
    duration_s: float
    resumed: bool
    interrupted: bool
    num_late: int
    arrival: str
    options: Mapping[str, OptionValue]
    emulated_link_gbps: float | None = None
    arrival_process: str | None = None
    fleet: Mapping[str, object] | None = None
    machine: Mapping[str, OptionValue] = field(default_factory=dict)


def printable(text: str) -> str:
    """`text` with the bytes of a file name that is no valid UTF-8 written out, as JSON needs it."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
