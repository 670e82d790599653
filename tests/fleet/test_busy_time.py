from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from caraserve_cli.events import StepRecord
from caraserve_cli.fleet.account import ReplicaAccount
from caraserve_cli.fleet.busy_time import BusyTime


def covered(steps: list[tuple[int, int]]) -> int:
    """Milliseconds in which there was one, one by one."""
    return len({ms for start, end in steps for ms in range(start, end)})


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), max_size=20))
def test_it_is_the_time_with_at_least_one_step(spans: list[tuple[int, int]]) -> None:
    steps = sorted(((start, start + length) for start, length in spans), key=lambda step: step[1])
    busy = BusyTime()
    for start, end in steps:
        busy.add(start, end)
    assert busy.total_ms == covered(steps)


def test_a_step_beside_others_makes_a_replica_no_busier_than_the_time_that_passed() -> None:
    def record(start_ms: float, end_ms: float, *, is_beside: bool = False) -> StepRecord:
        return StepRecord(
            start_ms=start_ms,
            end_ms=end_ms,
            num_prefill_tokens=0,
            num_decode_tokens=1,
            num_running=1,
            num_waiting=0,
            num_preempted=0,
            num_cached_tokens=0,
            num_adapter_loads=0,
            adapter_load_ms=0.0,
            num_kv_blocks_used=1,
            num_kv_blocks=10,
            is_beside=is_beside,
        )

    account = ReplicaAccount(name="replica-0", device="a device")
    for start_ms, end_ms in ((0, 10), (10, 20), (24, 30)):
        account.add_step(record(start_ms, end_ms))
    account.add_step(record(5, 32, is_beside=True))
    assert account.as_json()["busy_ms"] == 32
    assert account.as_json()["steps"] == 4
