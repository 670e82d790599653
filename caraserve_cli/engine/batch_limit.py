"""How many tokens a step may compute: what was configured, less for a while after a step did not fit."""

from __future__ import annotations

# So many steps must go well before larger ones are tried again. One that does not fit costs a launch in vain,
# about a step's time: one in 65 is under 2%. An eighth of the limit is the whole again after 192 steps, a few
# seconds. Chosen, not measured.
STEPS_BEFORE_GROWTH = 64


class BatchLimit:
    """The most tokens of a step: halved when one does not fit the device, doubled after
    `STEPS_BEFORE_GROWTH` that did, up to the `most_tokens` it began with. What filled the memory may have
    gone, and a limit that stayed low would slow all of a long run.
    """

    def __init__(self, most_tokens: int) -> None:
        self._most_tokens = most_tokens
        self._num_tokens = most_tokens
        self._num_steps = 0  # that fitted since the last change

    @property
    def num_tokens(self) -> int:
        return self._num_tokens

    def halve(self) -> bool:
        """A step did not fit; False if the limit cannot be lower."""
        if self._num_tokens == 1:
            return False
        self._num_tokens //= 2
        self._num_steps = 0
        return True

    def note_step(self) -> None:
        """A step fitted."""
        if self._num_tokens == self._most_tokens:
            return
        self._num_steps += 1
        if self._num_steps == STEPS_BEFORE_GROWTH:
            self._num_tokens = min(2 * self._num_tokens, self._most_tokens)
            self._num_steps = 0
