"""Balls of several kinds that are drawn one by one and not put back. Knows nothing of what they stand for."""

from __future__ import annotations

import random
from collections.abc import Sequence


class Urn:
    """Memory and the time of a draw follow from the number of kinds, never from that of the balls.

    A binary tree of counts: its leaves are the kinds, and every node has the balls below it.

    Args:
        counts: how many balls there are of each kind.
    """

    def __init__(self, counts: Sequence[int]) -> None:
        self._num_leaves = 1 << max(len(counts) - 1, 0).bit_length()
        self._tree = [0] * self._num_leaves + [*counts] + [0] * (self._num_leaves - len(counts))
        for node in range(self._num_leaves - 1, 0, -1):
            self._tree[node] = self._tree[2 * node] + self._tree[2 * node + 1]

    def __len__(self) -> int:
        """How many balls are left."""
        return self._tree[1]

    def draw(self, chosen: random.Random) -> int:
        """The kind of a ball, each of those left as likely as any other; there must be one."""
        ball = int(chosen.random() * len(self))
        tree, node = self._tree, 1
        tree[node] -= 1
        while node < self._num_leaves:
            node *= 2
            if ball >= tree[node]:
                ball -= tree[node]
                node += 1
            tree[node] -= 1
        return node - self._num_leaves
