"""How many tokens a CPU worker takes: as measured on this machine, or the constant where nothing was; and
what `auto` says where it has nothing to choose by."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from caraserve_cli.coldstart.break_even import BreakEven
from caraserve_cli.fleet import cold_start
from caraserve_cli.fleet.options import ReplicaOptions
from tests.perf.h200 import LLAMA2_7B, h200_profile


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the pools are made of, in place of processes."""
    made: list[dict[str, Any]] = []

    class NoPool:
        last_number = 0

        def __init__(self, groups: object, **settings: Any) -> None:
            made.append(settings)

        def close(self) -> None:
            """Nothing was started."""

    monkeypatch.setattr(cold_start, "WorkerPool", NoPool)
    return made


@pytest.mark.parametrize("tokens_per_worker", [7, None])
def test_the_profile_says_how_many_tokens_a_worker_takes(
    tokens_per_worker: int | None, pools: list[dict[str, Any]]
) -> None:
    break_even = None
    if tokens_per_worker is not None:
        break_even = BreakEven(replace(h200_profile(), tokens_per_worker=tokens_per_worker))
    host_store: Any = SimpleNamespace(arena=SimpleNamespace(fd=-1, capacity_bytes=4096))
    assistant = cold_start.start_assistant(
        ReplicaOptions(base="base", cpu_workers=1),
        host_store,
        LLAMA2_7B,
        torch.bfloat16,
        torch.device("cpu"),
        break_even,
    )
    assistant.close()
    assert [pool["tokens_per_worker"] for pool in pools] == [
        tokens_per_worker or cold_start.TOKENS_PER_WORKER
    ]


@pytest.mark.parametrize(
    ("options", "has_profile", "device", "told"),
    [
        (
            {"cpu_workers": 2},
            False,
            "cuda",
            "cold adapters stream, and no CPU workers are started; `caraserve pro",
        ),
        (
            {"cpu_workers": 0},
            False,
            "cuda",
            "cold adapters stream; `caraserve profile --base base` measures one",
        ),
        ({}, False, "cuda", "no profile of this machine, base and dtype: cold adapters stream"),
        ({"cpu_workers": 2}, False, "cpu", "nothing is copied to a base on the CPU"),
        ({"cpu_workers": 2}, True, "cuda", None),
        ({"cpu_workers": 2, "cold_start": "cpu-assist"}, False, "cpu", None),
        ({"cold_start": "stream"}, False, "cuda", None),
        ({"tensor_parallel": 2}, False, "cuda", None),
        ({}, False, "cpu", None),
    ],
)
def test_what_auto_lacks_is_told(
    options: dict[str, Any], has_profile: bool, device: str, told: str | None
) -> None:
    break_even = BreakEven(h200_profile()) if has_profile else None
    said = cold_start.what_auto_lacks(
        ReplicaOptions(base="base", **options), break_even, torch.device(device)
    )
    assert said is None if told is None else told in (said or "")


@pytest.mark.parametrize(
    ("options", "has_profile", "expected"),
    [
        ({}, True, True),
        ({"cpu_workers": 0}, True, False),
        ({"cpu_workers": 2}, False, False),
        ({"cpu_workers": 2, "tensor_parallel": 2}, True, False),
        ({"cold_start": "cpu-assist"}, False, True),
        ({"cold_start": "stream", "cpu_workers": 2}, True, False),
    ],
)
def test_workers_are_started_where_they_will_have_work(
    options: dict[str, Any], has_profile: bool, expected: bool
) -> None:
    break_even = BreakEven(h200_profile()) if has_profile else None
    assert cold_start.wants_workers(ReplicaOptions(base="base", **options), break_even) is expected
