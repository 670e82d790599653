"""PEFT's own LoRA layers on the work of one step: rows of several adapters by `adapter_names`, those of one
adapter by the active one, as a user would compute either.

Imports peft, which only the extra `caraserve[test]` installs. Its mixed batches look rows up on the host and
cannot be captured in a graph, so its time has the host's part in it, as in every run of PEFT. One layer is
measured, for all of them, and the base's products are taken off.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from caraserve_cli.bench.comparison import Spread
from caraserve_cli.bench.kernel_bench import KernelBench
from caraserve_cli.bench.kernel_cases import LoraCase, Phase
from caraserve_cli.bench.kernel_peers import NotToldApartError
from caraserve_cli.fleet.device_timer import Work

# A mixed batch of many adapters takes a second.
_MOST_REPEATS = 3


def peft_basis(bench: KernelBench) -> str:
    """How its time comes about, in words."""
    return (
        f"called layer by layer, the host's part included; one layer's time, {bench.shape.num_layers} times"
    )


def time_peft_lora(bench: KernelBench, case: LoraCase) -> Spread:
    """Microseconds of all layers: those of one with its products, less those of the products alone.

    Raises:
        NotToldApartError: the difference is not larger than what it varies by.
    """
    layer = _adapted_layer(bench, case)
    inputs = _inputs(bench, case)
    num_rows = next(iter(inputs.values())).shape[0]
    chosen: dict[str, list[str]] = {}
    if case.num_adapters > 1:
        chosen["adapter_names"] = [_name(row * case.num_adapters // num_rows) for row in range(num_rows)]
    changed = {module: layer.get_submodule(module) for module in bench.modules}
    bases = {module: each.get_submodule("base_layer") for module, each in changed.items()}

    def with_adapters() -> None:
        for module, x in inputs.items():
            changed[module](x, **chosen)

    def without() -> None:
        for module, x in inputs.items():
            bases[module](x)

    times = bench.timer.time_us(
        {
            "with": Work(with_adapters, 1, captured=False),
            "without": Work(without, 1, captured=False),
        },
        _MOST_REPEATS,
    )
    pairs = zip(times["with"].values, times["without"].values, strict=True)
    difference_us = Spread.of([bench.shape.num_layers * (adapted - base) for adapted, base in pairs])
    # Is so wherever one of them is below zero.
    if difference_us.median <= difference_us.highest - difference_us.lowest:
        raise NotToldApartError(difference_us)
    return difference_us


def _adapted_layer(bench: KernelBench, case: LoraCase) -> nn.Module:
    """One layer's linear modules with all adapters.

    PEFT makes the first adapter of each rank; the others are copies of its layers. Injecting each would take
    time that is quadratic in their number: 11 s for 256 of them.
    """
    layer = nn.Module()
    for module in bench.modules:
        widths = bench.shape.module_shape(module)
        layer.add_module(module, nn.Linear(*widths, bias=False, device=bench.device, dtype=bench.dtype))
    first_of: dict[int, str] = {}
    for index, lora_rank in enumerate(case.adapter_ranks):
        if lora_rank not in first_of:
            first_of[lora_rank] = _name(index)
            layer = _inject(bench, layer, lora_rank, _name(index))
    for index, lora_rank in enumerate(case.adapter_ranks):
        if first_of[lora_rank] != _name(index):
            for module in bench.modules:
                _copy_adapter(layer.get_submodule(module), first_of[lora_rank], _name(index))
    return layer.eval()


def _inject(bench: KernelBench, layer: nn.Module, lora_rank: int, name: str) -> nn.Module:
    config = LoraConfig(
        r=lora_rank, lora_alpha=lora_rank, target_modules=list(bench.modules), init_lora_weights=False
    )
    with warnings.catch_warnings():
        # That the layer has an adapter already.
        warnings.simplefilter("ignore")
        injected: nn.Module = inject_adapter_in_model(config, layer, name)
    return injected


def _copy_adapter(module: Any, source: str, target: str) -> None:
    """Give a PEFT layer another adapter, with memory of its own."""
    for by_adapter in (module.lora_A, module.lora_B, module.lora_dropout, module.scaling):
        by_adapter[target] = copy.deepcopy(by_adapter[source])


def _inputs(bench: KernelBench, case: LoraCase) -> dict[str, Tensor]:
    """Module → [rows, tokens of each, in]; a row is a request: one token of it, or its prompt."""
    num_rows = case.num_tokens if case.phase is Phase.DECODE else case.num_adapters
    inputs: dict[str, Tensor] = {}
    for module in bench.modules:
        width = bench.shape.module_shape(module)[0]
        inputs[module] = bench.random(num_rows, case.num_tokens // num_rows, width)
    return inputs


def _name(index: int) -> str:
    return f"adapter{index}"
