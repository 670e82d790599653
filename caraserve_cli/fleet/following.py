"""What a process that holds a part of a base does from its start to its end: as the one that leads says."""

from __future__ import annotations

from multiprocessing.connection import Connection

import torch

from caraserve_cli.coldstart.process_title import set_process_title
from caraserve_cli.fleet.follower_spec import FollowerSpec
from caraserve_cli.model.collective import ProcessGroup

LOADED = "loaded"
MEET = "meet"


def follow(leader: Connection) -> None:
    """Follow until nobody leads.

    Raises:
        CaraServeError: something is wrong that a user can cause or meet.
    """
    spec: FollowerSpec = leader.recv()
    shard = spec.config.shard
    set_process_title(f"caraserve-part {shard.tp_index}")
    torch.set_num_threads(spec.num_threads)
    if spec.device.type == "cuda":
        torch.cuda.set_device(spec.device)
    spec.check_device()
    group = ProcessGroup(shard, spec.device, spec.meeting_place)
    follower = spec.make_follower(group)
    leader.send(LOADED)
    assert leader.recv() == MEET
    group.meet()
    while True:
        follower.obey(leader.recv())
