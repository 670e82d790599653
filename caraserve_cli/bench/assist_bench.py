"""CPU workers as a replica has them, over an arena of random adapters in which no cache keeps what is read.

Adapters of a rank are taken in turn, so that between two uses of one all others are read. Knows no ways of
computing with them, and no times.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from caraserve_cli.adapters.host_arena import arena_bytes
from caraserve_cli.adapters.host_store import HostStore
from caraserve_cli.adapters.packing import Packer, UnpaddedForm, fused_groups
from caraserve_cli.adapters.weights import AdapterWeights
from caraserve_cli.coldstart.assistant import Assistant
from caraserve_cli.coldstart.exchange_memory import ExchangeMemory
from caraserve_cli.coldstart.worker_pool import WorkerPool
from caraserve_cli.core import FUSED_MODULES, BaseShape
from caraserve_cli.errors import InputError
from caraserve_cli.fleet.synthetic_adapter import SyntheticAdapter
from caraserve_cli.fleet.synthetic_adapters import SyntheticAdapters
from caraserve_kernels.lora_layout import FusedGroup

# Of all adapters of a rank: several times what the cores that share a cache have of it.
_ARENA_BYTES = 500 * 10**6
# In a benchmark a result is never given up because a machine is slow: later than this a worker is dead.
LATE_MS = 5_000.0
# Workers that have died are replaced meanwhile.
_PATIENCE_S = 60.0
_SLEEP_S = 0.5e-3

Op = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class AssistSetup:
    """What is benchmarked.

    Attributes:
        shape: of the base.
        modules: that adapters change.
        device: that sends and adds.
        dtype: of everything.
        cores: of the workers, one each.
        tokens_per_worker: see `WorkerPool`.
        max_tokens: of a prompt.
        lora_ranks: of the adapters, all different.
        most_uses: how often an adapter of each rank is taken; there are no more of them.
    """

    shape: BaseShape
    modules: tuple[str, ...]
    device: torch.device
    dtype: torch.dtype
    cores: Sequence[int]
    tokens_per_worker: int
    max_tokens: int
    lora_ranks: tuple[int, ...]
    most_uses: int

    @property
    def groups(self) -> tuple[FusedGroup, ...]:
        """The base's fused projections."""
        return fused_groups(self.shape)

    @property
    def ops(self) -> tuple[Op, ...]:
        """(layer, group) of each op of a prefill, in the order of the forward pass."""
        changed = [
            group for group, modules in enumerate(FUSED_MODULES) if set(modules).intersection(self.modules)
        ]
        return tuple((layer, group) for layer in range(self.shape.num_layers) for group in changed)

    def prefill_flops(self, num_tokens: int, lora_rank: int) -> int:
        """Operations of the LoRA part of a prefill."""
        return 2 * num_tokens * SyntheticAdapter(lora_rank, self.modules, 0).num_weights(self.shape)

    def synchronize(self) -> None:
        """Wait until the device has computed what was queued."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def random(self, *size: int, std: float = 1.0) -> Tensor:
        """Random values on the device."""
        return torch.empty(size, dtype=self.dtype, device=self.device).normal_(std=std)


@dataclass(slots=True)
class AssistBench:
    """Workers and adapters; `open_bench` makes it.

    Attributes:
        adapters: LoRA rank → adapters in the arena.
        base_weights: group → random weight [sum of out_widths, in_width] on the device, the same in each
            layer.
    """

    setup: AssistSetup
    memory: ExchangeMemory
    pool: WorkerPool
    assistant: Assistant
    adapters: dict[int, list[AdapterWeights]]
    base_weights: dict[int, Tensor]
    _num_taken: dict[int, int] = field(default_factory=dict)

    @property
    def num_adapters(self) -> int:
        """Of all ranks."""
        return sum(map(len, self.adapters.values()))

    def next_adapter(self, lora_rank: int) -> AdapterWeights:
        """The one of this rank that was taken longest ago."""
        of_rank, taken = self.adapters[lora_rank], self._num_taken.get(lora_rank, 0)
        self._num_taken[lora_rank] = taken + 1
        return of_rank[taken % len(of_rank)]

    def wait_for_workers(self) -> None:
        """Wait until workers can be given a prefill.

        Raises:
            InputError: there are none for a minute.
        """
        until_s = time.monotonic() + _PATIENCE_S
        self.assistant.settle()
        while not self.pool.num_workers:
            if time.monotonic() > until_s:
                raise InputError("CPU workers have died, or do not answer; stop other work on this machine")
            time.sleep(_SLEEP_S)
            self.assistant.settle()


@contextmanager
def open_bench(setup: AssistSetup) -> Iterator[AssistBench]:
    """Start workers and make the adapters; all of it is gone afterwards.

    Raises:
        InputError: no worker starts.
        OSError: there is no memory for the arena.
        OptionError: it cannot be pinned.
    """
    with ExitStack() as stack:
        store, names = _make_store(setup)
        stack.callback(store.close)
        adapters = {rank: [store.acquire(name) for name in of_rank] for rank, of_rank in names.items()}
        groups, is_cuda = setup.groups, setup.device.type == "cuda"
        memory = ExchangeMemory.create(
            setup.max_tokens,
            max(group.in_width for group in groups),
            max(sum(group.out_widths) for group in groups),
            setup.dtype,
            pinned=is_cuda,
        )
        stack.callback(memory.close)
        assert store.arena is not None
        pool = WorkerPool(
            groups,
            arena_fd=store.arena.fd,
            arena_bytes=store.arena.capacity_bytes,
            exchange_memory=memory,
            dtype=setup.dtype,
            cores=setup.cores,
            tokens_per_worker=setup.tokens_per_worker,
        )
        stack.callback(pool.close)
        stack.callback(setup.synchronize)
        assistant = Assistant(memory, pool, setup.device, LATE_MS)
        yield AssistBench(setup, memory, pool, assistant, adapters, _base_weights(setup))


def _make_store(setup: AssistSetup) -> tuple[HostStore, dict[int, list[str]]]:
    """An empty store with room for all adapters, and their names by rank."""
    sizes = {rank: SyntheticAdapter(rank, setup.modules, 0) for rank in setup.lora_ranks}
    num_copies: dict[int, int] = {}
    capacity_bytes = 0
    for rank, size in sizes.items():
        num_bytes = arena_bytes(size.num_weights(setup.shape) * setup.dtype.itemsize)
        num_copies[rank] = max(1, min(setup.most_uses, -(-_ARENA_BYTES // num_bytes)))
        # As much again: pieces are aligned, and no adapter lies in two of the arena's segments.
        capacity_bytes += 2 * num_copies[rank] * num_bytes
    made = [
        SyntheticAdapter(rank, setup.modules, copy)
        for rank, copies in num_copies.items()
        for copy in range(copies)
    ]
    source = SyntheticAdapters(made, packed=True).source
    packer = Packer(setup.shape, UnpaddedForm(), pinned=setup.device.type == "cuda")
    store = HostStore(
        source.library, setup.shape, setup.dtype, capacity_bytes, packer, source.load, source.outline
    )
    names: dict[int, list[str]] = {rank: [] for rank in sizes}
    for adapter in made:
        names[adapter.lora_rank].append(adapter.name)
    return store, names


def _base_weights(setup: AssistSetup) -> dict[int, Tensor]:
    # std: products as large as their inputs.
    return {
        index: setup.random(sum(group.out_widths), group.in_width, std=group.in_width**-0.5)
        for index, group in enumerate(setup.groups)
        if index in {group_index for _, group_index in setup.ops}
    }
