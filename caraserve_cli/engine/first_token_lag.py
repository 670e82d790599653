"""How much longer than predicted a first token takes once its request was admitted, as lately seen."""

from __future__ import annotations

from collections import deque

# First tokens that are remembered, and which of them tells what to expect. A mean would have half of those
# that are taken at the last moment come too late. Chosen, not measured.
_WINDOW = 32
_QUANTILE = 0.9


class FirstTokenLag:
    """The excess for each step of a prompt: steps under way, decoding beside it, adapters on their way; all
    of its time where nothing predicts it. 0 until one was seen."""

    def __init__(self) -> None:
        self._excess_ms: deque[float] = deque(maxlen=_WINDOW)
        self.chunk_ms = 0.0

    def note(self, took_ms: float, predicted_ms: float, num_chunks: int) -> None:
        """A first token came.

        Args:
            took_ms: since its request was admitted.
            predicted_ms: of that.
            num_chunks: steps that its prompt was to take.
        """
        self._excess_ms.append(max(0.0, took_ms - predicted_ms) / num_chunks)
        ordered = sorted(self._excess_ms)
        self.chunk_ms = ordered[int(_QUANTILE * (len(ordered) - 1))]
