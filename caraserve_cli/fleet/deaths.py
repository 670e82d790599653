"""How often the replicas of a fleet died, and which of them are worth another process. Knows no requests."""

from __future__ import annotations

# How often in a row one replica may die and be replaced, without an answer between. Chosen, not measured.
MOST_DEATHS = 3
# After so many of them it is doubted whether it can answer at all.
_DOUBTED_DEATHS = 2


class Deaths:
    """Counts of each replica, by index.

    Attributes:
        given_up: replicas that died too often to be replaced again.
    """

    def __init__(self, num_replicas: int) -> None:
        self._in_a_row = [0] * num_replicas
        self.given_up: set[int] = set()

    @property
    def are_all_given_up(self) -> bool:
        """Whether no replica is left."""
        return len(self.given_up) == len(self._in_a_row)

    def note_answer(self, replica: int) -> None:
        """A replica answered: it is well."""
        self._in_a_row[replica] = 0

    def note_death(self, replica: int) -> bool:
        """A replica died; whether it is to be replaced."""
        self._in_a_row[replica] += 1
        if self._in_a_row[replica] > MOST_DEATHS:
            self.given_up.add(replica)
        return replica not in self.given_up

    def is_doubted(self, replica: int) -> bool:
        """Whether an answer is wanted that tells that a replica is well, before it dies once more."""
        return self._in_a_row[replica] >= _DOUBTED_DEATHS
