"""torch.distributed's group of one process: what does not depend on how many there are. Those of several are
`tests/fleet`'s."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from caraserve_cli.model.collective import Alone, Collective, ProcessGroup
from caraserve_cli.shard import Shard
from tests.model.tiny import CPU


@pytest.fixture(params=["alone", "a group of one"])
def collective(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Collective]:
    if request.param == "alone":
        yield Alone()
        return
    before = dict(os.environ)
    group = ProcessGroup(Shard(0, 1), CPU, tmp_path / "meeting-place")
    group.part()  # they have not met: nothing to leave
    group.meet()
    assert os.environ == before, "settings of the backends are for their start only"
    yield group
    group.part()
    assert not dist.is_initialized()


@torch.inference_mode()
def test_one_process_has_everything(collective: Collective) -> None:
    values = torch.arange(6.0).view(2, 3)
    expected = values.clone()
    collective.all_reduce_(values)
    collective.broadcast_(values)
    assert torch.equal(values, expected)
    assert torch.equal(collective.gather_columns(values), expected)
    # Every other row of a wider matrix: what is gathered need not be contiguous.
    assert torch.equal(
        collective.gather_columns(torch.arange(12.0).view(4, 3)[::2]), expected * 2 - expected % 3
    )


@torch.inference_mode()
def test_a_step_of_prompts_that_go_on_has_no_logits(collective: Collective) -> None:
    assert collective.gather_columns(torch.empty(0, 5)).shape == (0, 5)
