"""What a replica needs for cold starts, as its options and this machine have it: CPU workers, a strategy, and
the way to the device.
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path

import torch

from caraserve_cli.adapters.copy_lane import CopyLane, EmulatedLink, open_lane
from caraserve_cli.adapters.host_store import HostStore
from caraserve_cli.adapters.packing import UnpaddedForm, fused_groups
from caraserve_cli.coldstart.assistant import Assistant
from caraserve_cli.coldstart.assisted_ops import LinkWays
from caraserve_cli.coldstart.break_even import BreakEven
from caraserve_cli.coldstart.exchange_memory import ExchangeMemory
from caraserve_cli.coldstart.policy import Auto, ColdStartPolicy, Stream, make_policy
from caraserve_cli.coldstart.worker_pool import WorkerPool
from caraserve_cli.core import BaseShape
from caraserve_cli.errors import OptionError
from caraserve_cli.fleet.machine import describe_device
from caraserve_cli.fleet.options import ReplicaOptions
from caraserve_cli.fleet.profile_link import measure_copies
from caraserve_cli.perf.link import LinkModel
from caraserve_cli.perf.profile import MachineProfile
from caraserve_cli.perf.profile_store import ProfileStore, default_folder, machine_id
from caraserve_kernels.host_exchange import MAX_WORKERS
from caraserve_kernels.link_clock import paced_rate

# Tokens of one step that CPU workers compute at most; the memory shared with them is for so many.
MAX_ASSISTED_TOKENS = 1024
# Cores that are left to whoever launches and to whoever reads adapters.
OTHER_CORES = 2
MOST_WORKERS = 16
# Tokens from which another worker is worth its start, where no profile says it; the paper has 8 to 16.
TOKENS_PER_WORKER = 16


def check_cold_start(options: ReplicaOptions, device: torch.device) -> None:
    """Refuse what cannot be honoured.

    Raises:
        OptionError: an option that does not go with the device, or is out of range.
    """
    gbps = options.emulate_link_gbps
    if gbps is not None and device.type != "cuda":
        raise OptionError(
            "--emulate-link-gbps: the base runs on the CPU, to which nothing is copied; leave it out, or use "
            "--device cuda"
        )
    if gbps is not None and not 0 < gbps < float("inf"):
        raise OptionError(f"--emulate-link-gbps: {gbps} is no speed; give gigabytes a second, such as 3")
    if options.cold_start == "cached":
        raise OptionError(
            "--cold-start: 'cached' has all adapters on the device before the clock starts, which only "
            "`caraserve bench` does, to compare with; choose another"
        )
    if options.cold_start == "cpu-assist" and options.cpu_workers == 0:
        raise OptionError("--cpu-workers: 'cpu-assist' needs at least one; leave the option out, or raise it")
    choose_cores(options)


def profile_base(base: str) -> str:
    """What a profile calls a base: a folder by its whole path, wherever it is named from."""
    return str(Path(base).resolve()) if Path(base).is_dir() else base


def this_machine(device: str) -> str:
    """What profiles of this machine are stored under, `device` being that of the base in words."""
    return machine_id(device, os.cpu_count() or 1)


def find_profile(options: ReplicaOptions, dtype: torch.dtype, device: torch.device) -> MachineProfile | None:
    """What `caraserve profile` has measured of this machine; None where it was not run, or
    several processes share the base, of whose steps it knows nothing.

    Raises:
        ProfileError: the stored profile cannot be read.
    """
    if options.tensor_parallel > 1:
        return None
    return ProfileStore(default_folder()).load(
        this_machine(describe_device(device)),
        profile_base(options.base),
        str(dtype).removeprefix("torch."),
    )


def make_break_even(
    profile: MachineProfile | None, options: ReplicaOptions, device: torch.device
) -> BreakEven | None:
    """The model of cold starts over this machine's own link; None without a profile, or where nothing is
    copied."""
    if profile is None or device.type != "cuda":
        return None
    is_padded = options.lora_kernel != UnpaddedForm.kernel
    return BreakEven(profile, options.prefill_chunk_tokens, is_padded=is_padded)


def choose_policy(name: str, break_even: BreakEven | None) -> ColdStartPolicy:
    """The strategy that `--cold-start` names. Without a profile, `auto` streams: that needs nothing measured.

    Raises:
        OptionError: there is no such strategy.
    """
    if name == Auto.name and break_even is None:
        return Stream()
    return make_policy(name, break_even)


def wants_workers(options: ReplicaOptions, break_even: BreakEven | None) -> bool:
    """Whether a replica starts CPU workers: for `auto`, if there is a model that says when they pay. They
    compute with whole adapters, of which processes that share a base have parts."""
    if options.tensor_parallel > 1:
        return False
    if options.cold_start == "auto":
        return options.cpu_workers != 0 and break_even is not None
    return options.cold_start == "cpu-assist"


def what_auto_lacks(
    options: ReplicaOptions, break_even: BreakEven | None, device: torch.device
) -> str | None:
    """A line for the user where `auto` has no model to choose by, though something is copied or CPU workers
    were asked for; None where nothing is to be said."""
    if options.cold_start != Auto.name or break_even is not None or options.tensor_parallel > 1:
        return None
    if device.type == "cuda":
        what = "cold adapters stream" + (", and no CPU workers are started" if options.cpu_workers else "")
        return (
            f"no profile of this machine, base and dtype: {what}; `caraserve profile --base {options.base}` "
            "measures one"
        )
    if not options.cpu_workers:
        return None
    return (
        "--cpu-workers: nothing is copied to a base on the CPU, so 'auto' starts none; "
        "--cold-start cpu-assist does"
    )


def start_assistant(
    options: ReplicaOptions,
    host_store: HostStore,
    shape: BaseShape,
    dtype: torch.dtype,
    device: torch.device,
    break_even: BreakEven | None = None,
) -> Assistant:
    """CPU workers as the options have them; a model fitted to this machine says how many share an op."""
    assert host_store.arena is not None, "workers compute with adapters in the arena"
    groups = fused_groups(shape)
    memory = ExchangeMemory.create(
        min(MAX_ASSISTED_TOKENS, options.max_batch_tokens),
        max(group.in_width for group in groups),
        max(sum(group.out_widths) for group in groups),
        dtype,
        pinned=device.type == "cuda",
    )
    try:
        pool = WorkerPool(
            groups,
            arena_fd=host_store.arena.fd,
            arena_bytes=host_store.arena.capacity_bytes,
            exchange_memory=memory,
            dtype=dtype,
            cores=choose_cores(options),
            tokens_per_worker=(
                TOKENS_PER_WORKER if break_even is None else break_even.profile.tokens_per_worker
            ),
        )
    except BaseException:
        memory.close()
        raise
    return Assistant(memory, pool, device)


def choose_cores(options: ReplicaOptions) -> list[int]:
    """The cores of this process that workers are pinned to, the last ones first.

    Raises:
        OptionError: there are not so many, or more than can work together.
    """
    cores = sorted(os.sched_getaffinity(0), reverse=True)
    if options.cpu_workers is not None and options.cpu_workers > len(cores):
        raise OptionError(
            f"--cpu-workers: {options.cpu_workers} are asked for, and there are {len(cores)} cores; use fewer"
        )
    if options.cpu_workers is not None and options.cpu_workers > MAX_WORKERS:
        raise OptionError(f"--cpu-workers: {options.cpu_workers} are asked for; use at most {MAX_WORKERS}")
    default = max(1, min(len(cores) - OTHER_CORES, MOST_WORKERS))
    return cores[: default if options.cpu_workers is None else options.cpu_workers]


class DeviceLink:
    """The way from the host to a replica's device and back: what the machine has, or a slower one.

    Args:
        device: a GPU, or the CPU in tests of its way.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.lane: CopyLane = open_lane(device)
        # Made once and kept: they are written on streams of which the allocator knows nothing, so that memory
        # of a step that is still computed could become a new clock.
        self._clocks = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(2)]
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def emulate(self, gbps: float | None, assistant: Assistant | None) -> None:
        """Be a link of `gbps` gigabytes a second each way from now on; None for the machine's own. Nothing
        must be under way.

        Raises:
            OptionError: the machine's own link is not faster.
        """
        ways = None
        if gbps is not None:
            bytes_per_s = self._paced_bytes_per_s(gbps)
            ways = LinkWays(*(EmulatedLink(clock, bytes_per_s) for clock in self._clocks))
        self.lane.link = None if ways is None else ways.to_device
        if assistant is not None:
            assistant.ops.link = ways

    def _paced_bytes_per_s(self, gbps: float) -> float:
        """At which the link is paced: on a GPU that comes on top of the true transfers."""
        if self._device.type != "cuda":
            return gbps * 1e9
        if gbps >= self._native_gbps:
            raise OptionError(
                f"--emulate-link-gbps: this machine's link carries {self._native_gbps:.3g} GB/s; give less"
            )
        return paced_rate(gbps, self._native_gbps) * 1e9

    @cached_property
    def _native_gbps(self) -> float:
        """Measured when it is first asked for."""
        measured = measure_copies(self._device)
        return LinkModel.fit("link", list(measured), list(measured.values())).gbps
