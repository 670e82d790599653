"""Room for prompts beside the steps of a replica: for one step at a time, which goes on while others do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class BesideLane:
    """Whether something is computed there, and until when it will be. Decides nothing.

    Attributes:
        max_tokens: of a step there; 0 where nothing can be computed beside the others.
        is_taken: whether one is under way.
    """

    max_tokens: int = 0
    is_taken: bool = False
    _until_ms: float = 0.0

    @property
    def free_tokens(self) -> int:
        """That a step which begins now may have."""
        return 0 if self.is_taken else self.max_tokens

    def wait_ms(self, now_ms: float) -> float | None:
        """How long until it is free, as far as it is known; None where it never is."""
        if not self.max_tokens:
            return None
        return max(0.0, self._until_ms - now_ms) if self.is_taken else 0.0

    def take(self, until_ms: float) -> None:
        """A step was begun that will end at about this time."""
        self.is_taken, self._until_ms = True, until_ms

    def leave(self) -> None:
        """It has ended."""
        self.is_taken = False
