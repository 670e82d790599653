"""Adapters that are to be in host memory before anyone asks for them, in the order of their need. Knows no
memory; the caller's lock guards it."""

from __future__ import annotations

from collections.abc import Iterable


class Wishes:
    """A list that is replaced as a whole.

    Attributes:
        names: the first is needed first; no two are equal.
        wait_for_room: the first one that is not met has no room before another one is used.
    """

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self.wait_for_room = False
        # Those that cannot be met ahead: whoever needs one has to read it.
        self._given_up: set[str] = set()

    def replace(self, names: Iterable[str]) -> bool:
        """Wish for these, and nothing else; False where that changes nothing."""
        wished = tuple(dict.fromkeys(names))
        if wished == self.names:
            return False
        self.names = wished
        self._given_up.intersection_update(wished)
        self.wait_for_room = False
        return True

    def num_ahead(self, name: str) -> int:
        """How many are needed before this one. It may have been struck off the list meanwhile: then it drives
        out nobody on it."""
        return self.names.index(name) if name in self.names else len(self.names)

    def give_up(self, name: str) -> None:
        """It cannot be met ahead, as things are."""
        if name in self.names:
            self._given_up.add(name)

    def is_given_up(self, name: str) -> bool:
        """Whether it cannot be met ahead."""
        return name in self._given_up

    def try_again(self) -> None:
        """Something has changed that may make room."""
        self._given_up.clear()

    def check_integrity(self) -> None:
        """For tests. Raises AssertionError where the books do not add up."""
        assert self._given_up <= set(self.names)
