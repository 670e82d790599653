"""Where the embedded sample is: beside the package in a checkout, inside it in an installed wheel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import caraserve_cli
from caraserve_cli.errors import InputError


@dataclass(frozen=True, slots=True)
class Sample:
    """Paths of the sample's three parts."""

    base: Path
    adapters: Path
    requests: Path


def find_sample() -> Sample:
    """The embedded sample.

    Raises:
        InputError: this installation does not have it.
    """
    package = Path(caraserve_cli.__file__).parent
    for folder in (package / "sample_data", package.parent / "sample_data"):
        if (folder / "requests.jsonl").is_file():
            return Sample(folder / "base", folder / "adapters", folder / "requests.jsonl")
    raise InputError("the embedded sample is not part of this installation; give --base and REQUESTS")
