"""What one measurement of a recipe of any kind gives, and who is told of it meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from caraserve_cli.bench.comparison import Verdict

if TYPE_CHECKING:
    from rich.console import RenderableType

# Told after each run: what was measured, the repeat (from 1; 0 for a warm-up), the repeats (0: measured as a
# whole), and what it gave.
Tell = Callable[[str, int, int, str], None]


class AnyResult(Protocol):
    """What a benchmark of any kind found."""

    @property
    def verdict(self) -> Verdict: ...
    def as_json(self) -> dict[str, object]: ...


@dataclass(frozen=True, slots=True)
class Measured:
    """A result, the same as text for a terminal, and what goes beside `--json NAME.json`: suffix, which takes
    the place of `.json`, → content: JSON, or text as it is."""

    result: AnyResult
    rendered: RenderableType
    beside: Mapping[str, Mapping[str, object] | str] = field(default_factory=dict)
