"""A pool of real workers over a real arena, and a driver that plays the device's part of a step."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from caraserve_cli.coldstart.exchange_memory import ExchangeMemory
from caraserve_cli.coldstart.worker_pool import AssistRows, Ticket, WorkerPool
from caraserve_kernels.host_exchange import add_rows, send_rows
from caraserve_kernels.lora_layout import (
    A_OFFSET,
    FIRST_MODULE,
    MODULE_B_OFFSET,
    MODULE_BIAS_OFFSET,
    MODULE_FIELDS,
    MODULE_RANK,
    MODULE_ROW,
    NO_BIAS,
    AdapterLayout,
    FusedGroup,
    ModuleKey,
)
from tests.kernels.exchange_workers import op_words

GROUPS = (
    FusedGroup(("q_proj", "k_proj", "v_proj"), 32, (32, 16, 16)),
    FusedGroup(("o_proj",), 32, (32,)),
    FusedGroup(("gate_proj", "up_proj"), 32, (48, 48)),
    FusedGroup(("down_proj",), 48, (32,)),
)
NUM_LAYERS = 3
MAX_ROWS = 64
OPS = tuple((layer, group) for layer in range(NUM_LAYERS) for group in range(len(GROUPS)))
# Far above what a step takes on a busy machine, for tests in which nothing dies.
PATIENCE_MS = 30_000.0


def reference(x: Tensor, arena: Tensor, entry: Sequence[int], group: FusedGroup) -> Tensor:
    """[t, sum of out_widths] float64: x·Aᵀ·B + bias as a module-by-module reading of the table has it."""
    columns = []
    for module, width in enumerate(group.out_widths):
        first = FIRST_MODULE + module * MODULE_FIELDS
        lora_rank = entry[first + MODULE_RANK]
        a_offset = entry[A_OFFSET] + entry[first + MODULE_ROW] * group.in_width
        b_offset, bias_offset = entry[first + MODULE_B_OFFSET], entry[first + MODULE_BIAS_OFFSET]
        a = arena[a_offset : a_offset + lora_rank * group.in_width].view(lora_rank, group.in_width)
        b = arena[b_offset : b_offset + lora_rank * width].view(lora_rank, width)
        column = x.double() @ a.double().T @ b.double()
        if bias_offset != NO_BIAS:
            column += arena[bias_offset : bias_offset + width].double()
        columns.append(column)
    return torch.cat(columns, dim=1)


@dataclass(frozen=True, eq=False)
class Bench:
    """A pool, what it shares, and the placed tables of the adapters in the arena."""

    pool: WorkerPool
    memory: ExchangeMemory
    arena: Tensor
    tables: Sequence[NDArray[np.int64]]

    def compute(
        self,
        ticket: Ticket,
        rows: Sequence[AssistRows],
        num_rows: int,
        *,
        ops: Sequence[tuple[int, int]] = OPS,
        late_ms: float = PATIENCE_MS,
    ) -> bool:
        """Be the device: send each op's rows, add what comes. Whether all came in time; then all is right."""
        wrong = []
        for index, (layer, group_index) in enumerate(ops):
            group, number = GROUPS[group_index], ticket.first_number + index
            x = torch.randn(num_rows, group.in_width).to(self.arena.dtype)
            y = torch.randn(num_rows, sum(group.out_widths)).to(self.arena.dtype)
            expected = y.double()
            for row in rows:
                part = slice(row.first_row, row.first_row + row.num_rows)
                entry = row.table[layer, group_index].tolist()
                expected[part] += reference(x[part], self.arena, entry, group)
            told = op_words(
                number,
                num_rows,
                first_number=ticket.first_number,
                workers=ticket.workers,
                late_ms=late_ms,
            )
            send_rows(x, self.memory.exchange, told)
            add_rows(y, self.memory.exchange, told)
            tolerance = 1e-5 if y.dtype == torch.float32 else 3e-2
            if not torch.allclose(y.double(), expected, rtol=tolerance, atol=tolerance):
                wrong.append(number)
        # A step during which one op has failed is discarded as a whole.
        in_time = int(self.memory.failed[0]) < ticket.first_number
        assert not (in_time and wrong), f"accepted, and wrong: {wrong}"
        return in_time


def adapters(arena: Tensor, lora_ranks: Sequence[Mapping[ModuleKey, int]]) -> list[NDArray[np.int64]]:
    """Tables of adapters laid out one behind the other in the arena, every second module with a bias."""
    tables, end = [], 0
    for ranks in lora_ranks:
        layout = AdapterLayout.build(GROUPS, NUM_LAYERS, ranks, list(ranks)[::2])
        tables.append(layout.placed(end))
        end += layout.num_elements
    arena[:end] = torch.randn(end) / 4
    return tables


LORA_RANKS: tuple[Mapping[ModuleKey, int], ...] = (
    {(layer, module): 8 for layer in range(NUM_LAYERS) for group in GROUPS for module in group.modules},
    {(layer, module): 3 + layer for layer in range(NUM_LAYERS) for module in ("q_proj", "v_proj", "up_proj")},
    {(1, "o_proj"): 16, (1, "down_proj"): 1, (2, "k_proj"): 5},
    # Enough for two workers a module, or four.
    {
        (layer, module): 16 + 17 * layer
        for layer in range(NUM_LAYERS)
        for group in GROUPS
        for module in group.modules
        if module != "k_proj"
    },
)


@contextmanager
def open_bench(
    num_workers: int, dtype: torch.dtype = torch.float32, tokens_per_worker: int = 4
) -> Iterator[Bench]:
    """Workers that share this machine's cores, and four adapters."""
    arena_bytes = 1 << 20
    fd = os.memfd_create("arena")
    memory = ExchangeMemory.create(MAX_ROWS, 48, 96, dtype, pinned=False)
    pool = None
    try:
        os.ftruncate(fd, arena_bytes)
        arena = torch.frombuffer(mmap.mmap(fd, arena_bytes), dtype=dtype)
        tables = adapters(arena, LORA_RANKS)
        cores = sorted(os.sched_getaffinity(0))
        pool = WorkerPool(
            GROUPS,
            arena_fd=fd,
            arena_bytes=arena_bytes,
            exchange_memory=memory,
            dtype=dtype,
            cores=[cores[index % len(cores)] for index in range(num_workers)],
            tokens_per_worker=tokens_per_worker,
        )
        yield Bench(pool, memory, arena, tables)
    finally:
        if pool is not None:
            pool.close()
        memory.close()
        os.close(fd)


def titled(title: str) -> set[int]:
    """Processes that live and whose command line begins with this title."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if line.startswith(title.encode()):
                found.add(int(entry.name))
    return found


def parent(pid: int) -> int:
    """Of a process that lives; 0 for one that does not."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def nurseries_of(pid: int) -> set[int]:
    """The nurseries that a process has started."""
    return {nursery for nursery in titled("caraserve-nursery") if parent(nursery) == pid}


def workers_of(pid: int) -> set[int]:
    """The workers of a process."""
    nurseries = nurseries_of(pid)
    return {worker for worker in titled("caraserve-worker") if parent(worker) in nurseries}
