"""What `--tensor-parallel` asks of the other options, the base and the machine, and the processes it
starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from caraserve_cli.errors import OptionError
from caraserve_cli.fleet.follower_spec import FollowerSpec
from caraserve_cli.fleet.followers import FollowerProcesses
from caraserve_cli.fleet.options import ReplicaOptions
from caraserve_cli.shard import Shard

if TYPE_CHECKING:
    from caraserve_cli.fleet.surroundings import Surroundings


def check_tensor_parallel(options: ReplicaOptions, device: torch.device) -> None:
    """Refuse what cannot be honoured. Whether the base can be cut so is `Shard.cut`'s to say.

    Raises:
        OptionError: an option does not go with it, or there are too few GPUs.
    """
    tp_size = options.tensor_parallel
    if tp_size < 1:
        raise OptionError(f"--tensor-parallel: {tp_size} processes cannot hold a base; give 1 or more")
    if tp_size == 1:
        return
    if options.cold_start == "cpu-assist":
        raise OptionError(
            "--cold-start: with --tensor-parallel no process has a whole adapter, with which the CPU workers "
            "of 'cpu-assist' compute; choose auto, stream, on-demand or on-demand-blocking"
        )
    if options.cpu_workers:
        raise OptionError(
            "--cpu-workers: with --tensor-parallel no process has a whole adapter, with which they compute; "
            "leave it out"
        )
    if options.emulate_link_gbps is not None:
        raise OptionError("--emulate-link-gbps: a base of --tensor-parallel has several links; leave it out")
    if device.type == "cuda" and (num_gpus := torch.cuda.device_count()) < tp_size:
        raise OptionError(
            f"--tensor-parallel: {tp_size} processes need a GPU each, and {num_gpus} can be used"
        )


def start_followers(surroundings: Surroundings, options: ReplicaOptions) -> FollowerProcesses:
    """Have the processes with the other parts of the base begin to load them.

    Raises:
        OSError: a process cannot be started.
    """
    base, device = surroundings.base, surroundings.device
    tp_size = options.tensor_parallel
    num_threads = max(1, torch.get_num_threads() // tp_size)
    packer = surroundings.host_store.packer

    def make_specs(meeting_place: Path) -> Sequence[FollowerSpec]:
        return [
            FollowerSpec(
                config=base.config.sharded(Shard(tp_index, tp_size)),
                folder=None if options.weights == "random" else base.folder,
                seed=options.seed,
                dtype=surroundings.dtype,
                device=device_of(tp_index, device),
                engine=surroundings.engine_config,
                library=surroundings.library,
                form=None if packer is None else packer.form,
                copies_adapters=surroundings.copies_adapters,
                host_adapter_bytes=surroundings.memory.host_adapter_bytes,
                num_threads=num_threads,
                needed_bytes=surroundings.memory.total_bytes,
                meeting_place=meeting_place,
            )
            for tp_index in range(1, tp_size)
        ]

    return FollowerProcesses(make_specs, base.config.shard, device_of(0, device))


def device_of(tp_index: int, device: torch.device) -> torch.device:
    """The device of a process: a GPU of its own, or the one CPU."""
    return torch.device("cuda", tp_index) if device.type == "cuda" else device
