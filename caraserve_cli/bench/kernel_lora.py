"""The LoRA part of a step, all layers, in the engine's form and in the padded one it is compared with.

Floor: A and B of the distinct adapters once over the copy bandwidth; in prefill, also the tokens on their
way in, and their outputs both ways, which no cache holds from a layer's product to the next operator; or the
operations over the matrix product rate. Peer: PEFT's LoRA layers, see `peft_lora`.
"""

from __future__ import annotations

from caraserve_cli.adapters.packing import LoraForm, PaddedForm, UnpaddedForm
from caraserve_cli.bench.comparison import Spread
from caraserve_cli.bench.kernel_bench import KernelBench
from caraserve_cli.bench.kernel_cases import FormsCase, LoraCase, Phase
from caraserve_cli.bench.kernel_peers import is_installed, measure_peer
from caraserve_cli.bench.kernel_result import FormsResult, OperatorResult, PeerTime
from caraserve_cli.core import FUSED_MODULES
from caraserve_cli.fleet.device_timer import Work
from caraserve_cli.fleet.kernel_batches import BGMV, MBGMV
from caraserve_cli.fleet.kernel_pool import PoolStep, RandomPool, even_segments

PEFT = "PEFT"


def measure_lora(bench: KernelBench, case: LoraCase, max_tokens: int) -> OperatorResult:
    """Ours, then PEFT's where it is installed.

    Args:
        bench: where.
        case: the step.
        max_tokens: of all steps of its phase; see `PoolStep`.
    """
    pool = RandomPool(bench, bench.shape, UnpaddedForm(), case.adapter_ranks)
    pool.fill(case.adapter_ranks)
    step = PoolStep(bench, pool, max_tokens, decoding=case.phase is Phase.DECODE)
    context = step.write(even_segments(case.num_tokens, case.num_adapters))
    launches = step.launches(context, case.num_tokens)
    work = bench.timer.capture([launches], 1)
    error = max(step.error(context, case.num_tokens), launches.error(work.run))
    time_us = bench.timer.time_us({"ours": work})["ours"]
    peers: tuple[PeerTime, ...] = ()
    if is_installed("peft"):
        from caraserve_cli.bench.peft_lora import peft_basis, time_peft_lora

        peers = (measure_peer(PEFT, lambda: time_peft_lora(bench, case), peft_basis(bench)),)
    return OperatorResult(
        name=case.name,
        time_us=time_us,
        floor_us=_floor_us(bench, case),
        peers=peers,
        error=error,
        wrong=bench.wrong(error),
        required=case.limits,
    )


def _floor_us(bench: KernelBench, case: LoraCase) -> float:
    shape = bench.shape
    widths = sum(sum(shape.module_shape(module)) for module in bench.modules)
    elements = shape.num_layers * widths * sum(case.adapter_ranks)
    flops = 2 * elements * case.num_tokens / case.num_adapters
    if case.phase is Phase.PREFILL:
        for modules in FUSED_MODULES:
            changed = [module for module in modules if module in bench.modules]
            if changed:
                in_width = shape.module_shape(changed[0])[0]
                out_width = sum(shape.module_shape(module)[1] for module in changed)
                elements += shape.num_layers * case.num_tokens * (in_width + 2 * out_width)
    return bench.floor_us(elements * bench.dtype.itemsize, flops)


def measure_forms(bench: KernelBench, case: FormsCase, max_tokens: int) -> FormsResult:
    """Both forms, interleaved, one token an adapter; see `measure_lora`."""
    num_tokens = len(case.adapter_ranks)
    forms: dict[str, LoraForm] = {MBGMV: UnpaddedForm(), BGMV: PaddedForm(max(case.adapter_ranks))}
    works: dict[str, Work] = {}
    error = 0.0
    for name, form in forms.items():
        pool = RandomPool(bench, bench.shape, form, case.adapter_ranks)
        pool.fill(case.adapter_ranks)
        step = PoolStep(bench, pool, max_tokens, decoding=True)
        context = step.write(even_segments(num_tokens, num_tokens))
        launches = step.launches(context, num_tokens)
        works[name] = bench.timer.capture([launches], 1)
        error = max(error, step.error(context, num_tokens), launches.error(works[name].run))
    times = bench.timer.time_us(works)
    ratios = [bgmv / mbgmv for bgmv, mbgmv in zip(times[BGMV].values, times[MBGMV].values, strict=True)]
    return FormsResult(
        case=case,
        mbgmv_us=times[MBGMV],
        bgmv_us=times[BGMV],
        bgmv_over_mbgmv=Spread.of(ratios),
        wrong=bench.wrong(error),
    )
