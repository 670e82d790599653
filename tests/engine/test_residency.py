from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caraserve_cli.core import AdapterInfo
from caraserve_cli.engine.residency import AdapterResidency


def info(name: str, num_bytes: int) -> AdapterInfo:
    return AdapterInfo(name=name, lora_rank=8, num_bytes=num_bytes, content_hash=name.encode())


def test_a_second_user_needs_no_load() -> None:
    residency = AdapterResidency(100)
    first = residency.acquire(info("a", 60))
    second = residency.acquire(info("a", 60))
    assert first.needs_load
    assert not second.needs_load
    assert first.adapter_slot == second.adapter_slot
    assert residency.used_bytes == 60


def test_adapters_in_use_are_never_evicted() -> None:
    residency = AdapterResidency(100)
    residency.acquire(info("a", 60))
    assert not residency.can_acquire(info("b", 50))
    with pytest.raises(ValueError, match="no room for adapter 'b'"):
        residency.acquire(info("b", 50))
    residency.release("a")
    acquired = residency.acquire(info("b", 50))
    assert acquired.evicted_slots == (0,)
    assert not residency.is_resident("a")


def test_the_least_recently_used_leaves_first_and_no_more_than_needed() -> None:
    residency = AdapterResidency(100)
    for name in "abc":
        residency.acquire(info(name, 30))
        residency.release(name)
    residency.acquire(info("a", 30))
    residency.release("a")
    assert residency.acquire(info("d", 40)).evicted_slots == (1,)
    assert [residency.is_resident(name) for name in "abcd"] == [True, False, True, True]


def test_a_failed_load_is_forgotten() -> None:
    residency = AdapterResidency(100)
    residency.acquire(info("a", 60))
    with pytest.raises(ValueError, match="in use"):
        residency.discard("a")
    residency.release("a")
    residency.discard("a")
    assert residency.used_bytes == 0
    assert residency.acquire(info("a", 60)).needs_load


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans()), max_size=80))
def test_books_hold_under_any_use(actions: list[tuple[str, bool]]) -> None:
    sizes = {name: 10 * (i + 1) for i, name in enumerate("abcdef")}
    residency = AdapterResidency(100)
    users: list[str] = []
    for name, leaves in actions:
        if leaves and users:
            residency.release(users.pop(0))
        elif residency.can_acquire(info(name, sizes[name])):
            residency.acquire(info(name, sizes[name]))
            users.append(name)
        residency.check_integrity()
        assert all(residency.is_resident(user) for user in users)
