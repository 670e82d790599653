"""Decoding steps that are passed over in one event: when each of them ends, by arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DecodeRun:
    """Steps that follow one another from `begin_ms` on, the first of `first_ms`, each further one longer by
    `growth_ms`: the cache grows by as many tokens in each.

    Attributes:
        num_steps: at most; at least 1.
    """

    begin_ms: float
    first_ms: float
    growth_ms: float
    num_steps: int

    def end_ms(self, num_steps: int) -> float:
        """When the first `num_steps` have ended."""
        grown = num_steps * (num_steps - 1) / 2
        return self.begin_ms + num_steps * self.first_ms + grown * self.growth_ms

    def steps_until(self, time_ms: float) -> int:
        """Of steps, at least 1 and no more than there are, the fewest that end at `time_ms` or later."""
        time_ms -= self.begin_ms
        # growth / 2 · n² + (first - growth / 2) · n = time, solved in the form that takes no growth, too.
        half = self.growth_ms / 2
        linear = self.first_ms - half
        slope = linear + math.sqrt(linear * linear + 4 * half * max(0.0, time_ms))
        guess = 2 * time_ms / slope if slope > 0 else 1.0
        steps = min(max(1, math.ceil(guess)), self.num_steps)
        # The formula may be off by one where a step ends right then.
        while steps > 1 and self.end_ms(steps - 1) - self.begin_ms >= time_ms:
            steps -= 1
        while steps < self.num_steps and self.end_ms(steps) - self.begin_ms < time_ms:
            steps += 1
        return steps
