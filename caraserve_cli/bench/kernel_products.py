"""The four products of a layer (q + k + v, o, gate + up, down), one after the other, as the decoder computes
them without adapters: those of all layers in one graph, each with weights of its own.

Floor: the weights over the copy bandwidth, or the operations over the matrix product rate. Peer: torch's
`linear`, which is cuBLAS on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from caraserve_cli.bench.kernel_bench import KernelBench
from caraserve_cli.bench.kernel_cases import ProductCase
from caraserve_cli.bench.kernel_result import OperatorResult, PeerTime
from caraserve_cli.core import FUSED_MODULES
from caraserve_cli.fleet.kernel_place import largest_error
from caraserve_kernels.linear import linear, linear_reference

TORCH = "torch"

_Product = Callable[[Tensor, Tensor], Tensor]


def measure_products(bench: KernelBench, case: ProductCase) -> OperatorResult:
    """Ours and torch's, interleaved."""
    shapes = [
        (
            bench.shape.module_shape(modules[0])[0],
            sum(bench.shape.module_shape(module)[1] for module in modules),
        )
        for modules in FUSED_MODULES
    ]
    # std: products as large as their inputs.
    weights = [
        [bench.random(width_out, width_in, std=width_in**-0.5) for width_in, width_out in shapes]
        for _ in range(bench.shape.num_layers)
    ]
    xs = [bench.random(case.num_tokens, width_in) for width_in, _ in shapes]
    error = max(
        largest_error(linear(x, weight), linear_reference(x, weight))
        for x, weight in zip(xs, weights[-1], strict=True)
    )

    def layers(product: _Product) -> Callable[[], None]:
        def run() -> None:
            for layer in weights:
                for x, weight in zip(xs, layer, strict=True):
                    product(x, weight)

        return run

    timer = bench.timer
    times = timer.time_us(
        {
            "ours": timer.capture([layers(linear)], bench.shape.num_layers),
            TORCH: timer.capture([layers(F.linear)], bench.shape.num_layers),
        }
    )
    num_weights = sum(width_in * width_out for width_in, width_out in shapes)
    return OperatorResult(
        name=case.name,
        time_us=times["ours"],
        floor_us=bench.floor_us(num_weights * bench.dtype.itemsize, 2 * case.num_tokens * num_weights),
        peers=(PeerTime(TORCH, times[TORCH]),),
        error=error,
        wrong=bench.wrong(error),
        required=case.limits,
    )
