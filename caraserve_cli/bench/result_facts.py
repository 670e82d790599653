"""What results of all kinds say of what was measured, by which program and on what machine.

Knows no files.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

# What the files of all kinds begin with, as far as a kind says it; what else it says follows.
_FIRST_KEYS = (
    "recipe",
    "description",
    "weights",
    "caraserve_version",
    "commit",
    "versions",
    "device",
    "cpu",
    "num_threads",
    "num_cores",
    "load_average",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultFacts:
    """Of a recipe that was measured or simulated.

    Attributes:
        commit: of the code that did it, None where nothing says it.
    """

    recipe: str
    description: str
    caraserve_version: str
    commit: str | None

    @property
    def commit_words(self) -> str:
        """The commit as the end of an enumeration; empty where nothing says it."""
        return f", commit {self.commit}" if self.commit else ""

    def as_json(self) -> dict[str, object]:
        """All of them, in the order of their kind's files."""
        values = dataclasses.asdict(self)
        first = {key: values.pop(key) for key in _FIRST_KEYS if key in values}
        return {**first, **values}


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredFacts(ResultFacts):
    """Of a recipe that was measured on this machine.

    Attributes:
        versions: of the packages that do the work; those not installed are left out.
        load_average: processes that wanted a core in the minute before, others' included; on a quiet
            machine about 0.
    """

    versions: dict[str, str]
    num_cores: int
    load_average: float

    @property
    def versions_words(self) -> str:
        """The packages and their versions as an enumeration."""
        return ", ".join(f"{name} {number}" for name, number in self.versions.items())
