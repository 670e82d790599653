"""Which resident adapters are to leave, so that requests that wait for room in the adapter pool get it.

A request whose adapter does not fit beside those in use is *blocked*. Those behind it that need no load may
pass it. That costs it nothing but for this: they prolong the use of their adapters, whose room it waits for.
So some resident adapters are *closed*, as many as suffice together for the first blocked requests, each with
a plan by which its users are to have ended, counted by their `max_tokens`. Who would end later does not pass
with a closed adapter; with any other, or the base alone, everybody may, without limit.

Why nobody starves: free bytes and closed adapters together are never less than the first blocked request
needs, for those closed for it stay closed until it is in, and nothing is loaded past it. So it is in when
their users have ended: within `DRAIN_STRETCH` of the most steps that any of them takes, if every step
computes a part of each running request and preempts nobody; otherwise later, but in finite time, for after
that nobody joins them. Closed adapters bind only those who arrived after the blocked request. Those who
arrived before it go before it, also when they come back from a preemption: they are finitely many. A
preempted one that arrived after it is bound like any other; its turn comes in the order of arrival.

Knows sizes and counts, no sequences and no tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from caraserve_cli.adapters.extents import aligned_bytes
from caraserve_cli.core import AdapterInfo
from caraserve_cli.engine.residency import AdapterResidency

# The share of the pool that is made room for at a time, if the first blocked request does not need more.
# Simulated with 96 to 200 adapters, pools of 2 and 4.3 GB, all at once and one by one: an eighth and a half
# give the same output tokens/s within 4%, and no order. Chosen so that it leaves most adapters open.
DRAIN_SHARE = 0.25

# How much longer than the longest of those who ask for it, running or waiting, an adapter may be in use once
# it is closed: so the blocked request may wait for some that came after it. Room for others to join is what
# fills the batch where the pool holds few adapters: simulated with one adapter resident of two whose requests
# alternate, 9,931 output tokens/s against 5,152 with a stretch of 1, and 261 if nobody may join. With 2 the
# 99th percentile of waiting is up to 25% longer, at the same rate. Where answers end long before their
# `max_tokens`, the wait is up to 1.25 times the latter.
DRAIN_STRETCH = 1.25


@dataclass(slots=True)
class AdapterUse:
    """Who asks for an adapter: how many wait, and the most steps that anyone, running or waiting, takes."""

    num_waiting: int = 0
    num_steps: int = 0


class AdapterDrain:
    """The closed adapters. For each plan `begin_plan()`, then in the order of arrival `block()` for who is
    blocked and `may_pass()` for who is not, then `end_plan()` if all that wait had their turn.

    Args:
        residency: what is resident; it is only looked at.
        count_uses: who asks for each adapter now. Called at most once a plan, when more are to be closed.

    Attributes:
        is_blocked: whether a request of this plan is blocked, so that those behind it would pass it.
    """

    def __init__(
        self, residency: AdapterResidency, count_uses: Callable[[], Mapping[str, AdapterUse]]
    ) -> None:
        self._residency = residency
        self._count_uses = count_uses
        self._uses: Mapping[str, AdapterUse] | None = None
        self._num_plans = 0
        self._closed: dict[str, int] = {}  # adapter → the plan by which its users have ended; in this order
        self._closed_bytes = 0
        self._served: set[str] = set()  # adapters of this plan's blocked requests that room is made for
        self._served_bytes = 0
        self._is_full = False  # no room is made for more
        self.is_blocked = False

    def begin_plan(self) -> None:
        self._num_plans += 1
        self._uses = None
        self._served.clear()
        self._served_bytes = 0
        self._is_full = False
        self.is_blocked = False

    def pass_plans(self, num_plans: int) -> None:
        """Begin so many plans one after the other, of which each but the last blocks nobody."""
        self.begin_plan()
        self._num_plans += num_plans - 1

    def block(self, info: AdapterInfo) -> None:
        """Have room made for `info`, which is not resident, if it is among the first."""
        if self._is_full or info.name in self._served:
            return
        num_bytes = aligned_bytes(info.num_bytes)
        if not self.is_blocked:
            self.is_blocked = True
            self._forget_evicted()
        elif self._exceeds_share(num_bytes):
            self._is_full = True  # for smaller ones too: room is made in the order of arrival
            return
        self._served.add(info.name)
        self._served_bytes += num_bytes
        if self._surplus_bytes < 0 or self._surplus_slots < 0:
            self._close_more()

    def may_pass(self, adapter: str, num_steps: int) -> bool:
        """Whether a request of a resident adapter that takes up to `num_steps` may pass the blocked ones."""
        last_plan = self._closed.get(adapter)
        return last_plan is None or self._num_plans + num_steps <= last_plan

    def note_user(self, adapter: str, num_steps: int) -> None:
        """A request that is bound by nothing, for it came before the blocked ones, takes `adapter`: if it
        ends too late, no room comes from there, and who is blocked next has others closed."""
        if not self.may_pass(adapter, num_steps):
            del self._closed[adapter]

    def end_plan(self) -> None:
        """Open what is closed beyond need, the last closed first: the first blocked request's stay closed."""
        if not self.is_blocked:
            self._closed.clear()
        for name in reversed(tuple(self._closed)):
            num_bytes = self._residency.size_bytes(name)
            if self._surplus_bytes < num_bytes or self._surplus_slots < 1:
                return
            del self._closed[name]
            self._closed_bytes -= num_bytes

    def _exceeds_share(self, num_bytes: int) -> bool:
        most_bytes = DRAIN_SHARE * self._residency.capacity_bytes
        most_slots = DRAIN_SHARE * self._residency.max_adapters
        return self._served_bytes + num_bytes > most_bytes or len(self._served) + 1 > most_slots

    def _forget_evicted(self) -> None:
        """Needed once a plan: behind the first blocked request nothing is loaded, so nothing is evicted."""
        is_resident = self._residency.is_resident
        self._closed = {name: last_plan for name, last_plan in self._closed.items() if is_resident(name)}
        self._closed_bytes = sum(map(self._residency.size_bytes, self._closed))

    @property
    def _surplus_bytes(self) -> int:
        return self._residency.free_bytes + self._closed_bytes - self._served_bytes

    @property
    def _surplus_slots(self) -> int:
        return self._residency.num_free_slots + len(self._closed) - len(self._served)

    def _close_more(self) -> None:
        """Close what is missing: first those whose users end soonest, of equals whose room fewest wait for.

        Simulated with a few long answers among short ones, one by one: closing those first that nobody waits
        for makes the 99th percentile of waiting a third longer, at the same rate.
        """
        residency = self._residency
        if self._uses is None:
            self._uses = self._count_uses()
        uses = {name: self._uses.get(name, AdapterUse()) for name in residency if name not in self._closed}
        candidates = sorted(
            uses, key=lambda name: (uses[name].num_steps, uses[name].num_waiting / residency.size_bytes(name))
        )
        for name in residency.choose_enough(candidates, -self._surplus_bytes, -self._surplus_slots):
            self._closed[name] = self._num_plans + int(DRAIN_STRETCH * uses[name].num_steps)
            self._closed_bytes += residency.size_bytes(name)
