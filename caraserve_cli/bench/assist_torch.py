"""What torch makes of the same LoRA products with threads of its own, and the most that it makes of as many
threads: the rate of a large square product.

Both run in this process, where they are not pinned to cores, as a program has it that leaves threading to
torch. Like a worker, an op shrinks x for all modules of a fused projection by one product, and expands each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from caraserve_cli.adapters.weights import AdapterWeights
from caraserve_cli.bench.assist_bench import AssistBench, AssistSetup
from caraserve_cli.bench.assist_prefill import lora_reference
from caraserve_cli.coldstart.cpu_lora import choose_compute_dtype
from caraserve_cli.core import FUSED_MODULES
from caraserve_cli.fleet.kernel_place import largest_error

# Large enough that neither reading nor a start counts; on a machine without a GPU a tenth of a second.
_PEAK_SIZE = {"cuda": 4096, "cpu": 1024}
_NUM_PEAK_RUNS = 10
# Threads that have nothing to do spin on for some milliseconds, on cores that workers are pinned to.
_REST_S = 0.02


class TorchPrefill:
    """The LoRA products of a prefill on the host, by torch's threads: alone, or with the trip of their rows.

    Args:
        bench: the adapters, and how many threads there are: a thread for each worker.
        num_tokens: of the prompt.
    """

    def __init__(self, bench: AssistBench, num_tokens: int) -> None:
        self._bench, setup = bench, bench.setup
        self._compute_dtype = choose_compute_dtype(setup.dtype)
        self._xs: dict[int, Tensor] = {}
        # The next op writes over them, as workers write all results to the same memory.
        self._outs: dict[int, Tensor] = {}
        # What the trip begins and ends with, on the device.
        self._device_xs: dict[int, Tensor] = {}
        self._device_ys: dict[int, Tensor] = {}
        for group, weight in bench.base_weights.items():
            out_width, in_width = weight.shape
            self._xs[group] = self._host_rows(num_tokens, in_width).normal_()
            self._outs[group] = self._host_rows(num_tokens, out_width).zero_()
            self._device_xs[group] = setup.random(num_tokens, in_width)
            self._device_ys[group] = setup.random(num_tokens, out_width)

    def run(self, weights: AdapterWeights) -> float:
        """Seconds of all ops, of rows that lie in host memory, where their results stay; a `Way`."""
        with torch_threads(len(self._bench.setup.cores)):
            products = [self._product(layer, group, weights) for layer, group in self._bench.setup.ops]
            began_s = time.perf_counter()
            for product in products:
                product()
            return time.perf_counter() - began_s

    def run_for_device(self, weights: AdapterWeights) -> float:
        """Seconds of all ops from where the workers' begin to where they end; a `Way`. The rows are copied
        from the device and waited for, and what torch made of them is copied there and added."""
        setup = self._bench.setup
        with torch_threads(len(setup.cores)):
            products = [(group, self._product(layer, group, weights)) for layer, group in setup.ops]
            setup.synchronize()
            began_s = time.perf_counter()
            for group, product in products:
                self._xs[group].copy_(self._device_xs[group], non_blocking=True)
                setup.synchronize()
                product()
                # The group's next op overwrites the result only when its own rows have come: afterwards.
                update = self._outs[group].to(setup.device, non_blocking=True)
                self._device_ys[group].add_(update)
            setup.synchronize()
            return time.perf_counter() - began_s

    def _host_rows(self, num_tokens: int, width: int) -> Tensor:
        setup = self._bench.setup
        return torch.empty(num_tokens, width, dtype=setup.dtype, pin_memory=setup.device.type == "cuda")

    def error(self, weights: AdapterWeights) -> float:
        """The largest difference of any op of the last layer from its float32 reference, of the largest
        value."""
        last_layer = self._bench.setup.shape.num_layers - 1
        return max(
            largest_error(
                self._outs[group], lora_reference(self._bench, last_layer, group, weights, x.float())
            )
            for group, x in self._xs.items()
        )

    def _product(self, layer: int, group: int, weights: AdapterWeights) -> Callable[[], None]:
        """An op, every view made."""
        packed = weights.packed
        assert packed is not None
        pieces = packed.layout.pieces
        changed = [
            (index, pieces[layer, module])
            for index, module in enumerate(FUSED_MODULES[group])
            if (layer, module) in pieces
        ]
        x, out, widths = self._xs[group], self._outs[group], self._bench.setup.groups[group].out_widths
        ranks = [piece.lora_rank for _, piece in changed]
        a_offset = changed[0][1].a_offset
        stacked_a = packed.blob[a_offset:][: sum(ranks) * x.shape[1]].view(sum(ranks), x.shape[1])
        columns = [torch.split(out, list(widths), dim=1)[index] for index, _ in changed]
        b_rows = [weights.pairs[layer, FUSED_MODULES[group][index]].b_rows for index, _ in changed]
        compute_dtype = self._compute_dtype

        def run() -> None:
            h = torch.mm(x.to(compute_dtype), stacked_a.to(compute_dtype).T)
            for h_rows, b, y in zip(torch.split(h, ranks, dim=1), b_rows, columns, strict=True):
                if compute_dtype == y.dtype:
                    torch.mm(h_rows, b, out=y)
                else:
                    y.copy_(torch.mm(h_rows, b.to(compute_dtype)))

        return run


def measure_peak(setup: AssistSetup) -> float:
    """Operations a second of a large product on as many threads as there are workers, in the dtype in which
    workers compute: the best of several runs, since it is to bound what they can reach."""
    size = _PEAK_SIZE[setup.device.type]
    left, right = (
        torch.empty(size, size, dtype=choose_compute_dtype(setup.dtype)).normal_() for _ in range(2)
    )
    product = torch.empty_like(left)
    times_s: list[float] = []
    with torch_threads(len(setup.cores)):
        for _ in range(_NUM_PEAK_RUNS):
            began_s = time.perf_counter()
            torch.mm(left, right, out=product)
            times_s.append(time.perf_counter() - began_s)
    return 2 * size**3 / min(times_s)


@contextmanager
def torch_threads(num_threads: int) -> Iterator[None]:
    """Torch has so many threads on the CPU, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        time.sleep(_REST_S)
