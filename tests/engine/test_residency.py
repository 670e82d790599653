"""Who is on the device, where, and who leaves: checked against a pool of bytes that obeys the plans."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caraserve_cli.adapters.extents import ALIGNMENT_BYTES, aligned_bytes
from caraserve_cli.core import AdapterInfo
from caraserve_cli.engine.residency import AdapterResidency
from caraserve_cli.step_plan import AdapterEviction, AdapterLoad, AdapterMove, PoolOp

UNIT = ALIGNMENT_BYTES


def info(name: str, num_units: int) -> AdapterInfo:
    return info_of_bytes(name, num_units * UNIT)


def info_of_bytes(name: str, num_bytes: int) -> AdapterInfo:
    return AdapterInfo(name=name, lora_rank=8, num_bytes=num_bytes, identity=name.encode())


def use(residency: AdapterResidency, name: str, num_units: int, num_uses: int = 1) -> tuple[PoolOp, ...]:
    """Acquire and release an adapter; what its first use did to the pool."""
    first, *_ = [residency.acquire(info(name, num_units)) for _ in range(num_uses)]
    for _ in range(num_uses):
        residency.release(name)
    residency.check_integrity()
    return first.pool_ops


def residents(residency: AdapterResidency, names: str) -> str:
    return "".join(name for name in names if residency.is_resident(name))


def test_a_second_user_needs_no_load() -> None:
    residency = AdapterResidency(10 * UNIT, 999)
    first = residency.acquire(info("a", 6))
    second = residency.acquire(info("a", 6))
    assert first.pool_ops == (AdapterLoad("a", 0, 0),)
    assert first.needs_load
    assert not second.needs_load
    assert first.adapter_slot == second.adapter_slot
    assert residency.used_bytes == 6 * UNIT


def test_adapters_in_use_are_never_evicted() -> None:
    residency = AdapterResidency(10 * UNIT, 999)
    residency.acquire(info("a", 6))
    assert not residency.can_acquire(info("b", 5))
    with pytest.raises(ValueError, match="no room for adapter 'b'"):
        residency.acquire(info("b", 5))
    residency.release("a")
    acquired = residency.acquire(info("b", 5))
    assert acquired.pool_ops == (AdapterEviction(0), AdapterLoad("b", 0, 0))
    assert not residency.is_resident("a")


def test_whatever_is_not_larger_than_the_pool_fits_it_alone() -> None:
    """As `limits.check_fits` promises, to the byte."""
    residency = AdapterResidency(1000, 999)
    use(residency, "small", 1)
    assert residency.can_acquire(info_of_bytes("whole", 1000))
    residency.acquire(info_of_bytes("whole", 1000))
    residency.check_integrity()
    assert residency.used_bytes == residency.capacity_bytes == aligned_bytes(1000)


def test_of_equals_the_least_recently_used_leaves_and_no_more_than_needed() -> None:
    residency = AdapterResidency(10 * UNIT, 999)
    for name in "abc":
        use(residency, name, 3)
    use(residency, "a", 3)
    use(residency, "c", 3)
    use(residency, "b", 3)  # each twice, a longest ago
    ops = use(residency, "d", 4)
    assert [op for op in ops if isinstance(op, AdapterEviction)] == [AdapterEviction(0)]
    assert residents(residency, "abcd") == "bcd"


def test_use_is_recent_until_it_ends() -> None:
    residency = AdapterResidency(2 * UNIT, 999)
    residency.acquire(info("long", 1))
    use(residency, "short", 1)
    residency.release("long")
    use(residency, "new", 1)
    assert residents(residency, "ls") == ""
    assert residency.is_resident("long")
    assert not residency.is_resident("short")


def test_the_frequently_used_survives_a_scan() -> None:
    residency = AdapterResidency(4 * UNIT, 999)
    use(residency, "h", 1, num_uses=5)
    for name in "abcdefg":
        use(residency, name, 1)  # the least recently used would be h from d on
    assert residency.is_resident("h")


def test_old_fame_fades() -> None:
    residency = AdapterResidency(4 * UNIT, 999)
    use(residency, "h", 1, num_uses=5)
    for number in range(100):
        use(residency, f"cold {number}", 1)
    assert not residency.is_resident("h")


def test_a_large_adapter_leaves_before_small_ones_of_equal_use() -> None:
    """Each copy has a latency, so that reloading many small ones costs more than one large one."""
    residency = AdapterResidency(8 * UNIT, 999)
    for name in "abcd":
        use(residency, name, 1)
    use(residency, "l", 4)
    use(residency, "n", 2)
    assert residents(residency, "abcdln") == "abcdn"


def test_a_small_victim_is_spared_when_a_large_one_suffices() -> None:
    residency = AdapterResidency(8 * UNIT, 999)
    use(residency, "s", 1)
    use(residency, "l", 7, num_uses=20)
    ops = use(residency, "n", 6)
    assert [op for op in ops if isinstance(op, AdapterEviction)] == [AdapterEviction(1)]
    assert residents(residency, "sln") == "sn"


def test_some_slack_leaves_too_but_nobody_who_is_wanted() -> None:
    residency = AdapterResidency(100 * UNIT, 999)
    for number in range(100):
        use(residency, f"{number}", 1)
    residency.note_waiting("3", +1)
    residency.acquire(info("n", 1))
    residency.check_integrity(["3"])
    left = [number for number in range(100) if not residency.is_resident(f"{number}")]
    assert left == [0, 1, 2, 4, 5, 6], "one for the room, five of a hundred for the next"


def test_whom_a_waiting_request_wants_stays_if_another_can_leave() -> None:
    residency = AdapterResidency(2 * UNIT, 999)
    use(residency, "w", 1)
    use(residency, "h", 1, num_uses=9)
    residency.note_waiting("w", +1)
    residency.note_waiting("w", +1)
    residency.note_waiting("w", -1)
    residency.acquire(info("n", 1))
    assert residents(residency, "whn") == "wn"
    residency.acquire(info("m", 1))
    assert residents(residency, "wnm") == "nm", "it still leaves when nobody else can"
    residency.check_integrity(["w", None])
    residency.note_waiting("w", -1)
    residency.note_waiting(None, +1)
    residency.check_integrity()


def test_extents_in_use_move_together_when_no_hole_fits() -> None:
    residency = AdapterResidency(10 * UNIT, 999)
    for name, size in (("a", 2), ("b", 3), ("c", 2), ("d", 2)):
        residency.acquire(info(name, size))
    residency.release("a")
    residency.release("c")
    acquired = residency.acquire(info("e", 5))
    assert acquired.pool_ops == (
        AdapterEviction(0),
        AdapterEviction(2),
        AdapterMove(1, 2 * UNIT, 0, 3 * UNIT),
        AdapterMove(3, 7 * UNIT, 3 * UNIT, 2 * UNIT),
        AdapterLoad("e", acquired.adapter_slot, 5 * UNIT),
    )
    residency.check_integrity()


def test_a_failed_load_is_forgotten() -> None:
    residency = AdapterResidency(10 * UNIT, 999)
    residency.acquire(info("a", 6))
    with pytest.raises(ValueError, match="in use"):
        residency.discard("a")
    residency.release("a")
    residency.discard("a")
    assert residency.used_bytes == 0
    assert residency.acquire(info("a", 6)).needs_load
    residency.check_integrity()


class SimulatedPool:
    """A device pool of bytes: does what it is told, in order, and knows what ought to be where."""

    def __init__(self, capacity_bytes: int, contents: dict[str, bytes]) -> None:
        self.buffer = bytearray(capacity_bytes)
        self.contents = contents
        self.slots: dict[int, tuple[str, int]] = {}  # adapter slot → its adapter, its offset

    def execute(self, op: PoolOp) -> None:
        match op:
            case AdapterEviction():
                del self.slots[op.adapter_slot]
            case AdapterMove():
                adapter, offset = self.slots[op.adapter_slot]
                assert offset == op.from_offset_bytes
                assert len(self.contents[adapter]) <= op.num_bytes
                self._write(op.to_offset_bytes, self.buffer[offset : offset + op.num_bytes])
                self.slots[op.adapter_slot] = adapter, op.to_offset_bytes
            case AdapterLoad():
                assert op.adapter_slot not in self.slots
                self._write(op.offset_bytes, self.contents[op.adapter])
                self.slots[op.adapter_slot] = op.adapter, op.offset_bytes
        self.check()  # after each operation: a wrong order shows before the last one mends it

    def _write(self, offset: int, content: bytes | bytearray) -> None:
        assert offset % UNIT == 0
        assert offset + len(content) <= len(self.buffer)
        self.buffer[offset : offset + len(content)] = content

    def check(self) -> None:
        for adapter, offset in self.slots.values():
            content = self.contents[adapter]
            assert self.buffer[offset : offset + len(content)] == content, f"'{adapter}' is damaged"


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 30 * UNIT),
    st.lists(st.integers(1, 12 * UNIT), min_size=1, max_size=12),
    st.lists(st.tuples(st.sampled_from("aaarrwp"), st.integers(0, 10**6)), max_size=80),
    st.randoms(use_true_random=False),
)
def test_every_resident_is_intact_under_any_use(
    capacity_bytes: int, sizes: list[int], actions: list[tuple[str, int]], rng: random.Random
) -> None:
    """Acquire, release, want and drop at random; plans are executed some time later, in order."""
    infos = [info_of_bytes(f"adapter {i}", size) for i, size in enumerate(sizes)]
    contents = {adapter.name: rng.randbytes(adapter.num_bytes) for adapter in infos}
    residency = AdapterResidency(capacity_bytes, 999)
    pool = SimulatedPool(residency.capacity_bytes, contents)
    planned: list[PoolOp] = []
    users: list[AdapterInfo] = []
    waiting: list[str] = []
    for action, number in actions:
        adapter = infos[number % len(infos)]
        if action == "a":
            pinned_bytes = sum(aligned_bytes(i.num_bytes) for i in set_of(users))
            fits = pinned_bytes + aligned_bytes(adapter.num_bytes) <= residency.capacity_bytes
            assert residency.can_acquire(adapter) == (fits or residency.is_resident(adapter.name))
            if residency.can_acquire(adapter):
                acquired = residency.acquire(adapter)
                planned += acquired.pool_ops
                users.append(adapter)
        elif action == "r" and users:
            residency.release(users.pop(number % len(users)).name)
        elif action == "w":
            waiting.append(adapter.name)
            residency.note_waiting(adapter.name, +1)
            if number % 2:
                residency.note_waiting(waiting.pop(0), -1)
        elif action == "p":
            run(pool, residency, planned)
        residency.check_integrity(waiting)
        assert residency.used_bytes <= residency.capacity_bytes
        assert all(residency.is_resident(user.name) for user in users)
    run(pool, residency, planned)


def set_of(infos: list[AdapterInfo]) -> list[AdapterInfo]:
    return list({adapter.name: adapter for adapter in infos}.values())


def run(pool: SimulatedPool, residency: AdapterResidency, planned: list[PoolOp]) -> None:
    """Execute and forget a plan; afterwards the pool holds exactly the residents."""
    for op in planned:
        pool.execute(op)
    planned.clear()
    held = Counter(adapter for adapter, _ in pool.slots.values())
    assert held == Counter(name for name in pool.contents if residency.is_resident(name))
