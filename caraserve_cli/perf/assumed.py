"""What is assumed of a machine of which no profile was measured, for placement to compare replicas by.

Sizes of the base over round numbers of a device of its kind: who has more work, more rank, more prompt than
another is told rightly, how many milliseconds that is, is not. Nothing is reported from it.
"""

from __future__ import annotations

from caraserve_cli.core import LORA_MODULES, BaseShape
from caraserve_cli.perf.decode import DecodeModel
from caraserve_cli.perf.least_squares import FitQuality
from caraserve_cli.perf.link import LinkModel
from caraserve_cli.perf.lora_kernels import LoraKernelModel
from caraserve_cli.perf.prefill import PrefillModel
from caraserve_cli.perf.profile import DTYPE_BYTES, MachineProfile, MeasuredOn

# A GPU of a server, and two cores' share of one: memory, multiplications and additions, the link. Chosen, not
# measured.
_GPU_BYTES_PER_MS, _CPU_BYTES_PER_MS = 2e9, 1e7
_GPU_FLOP_PER_MS, _CPU_FLOP_PER_MS = 3e11, 1e8
_LINK_BYTES_PER_MS = 2.5e7
_TOKENS_PER_WORKER = 16
_NOT_FITTED = FitQuality(0.0, 0.0, 0)
# Each request more in a batch, as a share of the step of one. Chosen, not measured.
_REQUEST_SHARE = 0.01
_LARGEST_BATCH = 256


def assumed_profile(base: str, shape: BaseShape, dtype: str, *, is_on_gpu: bool) -> MachineProfile:
    """Models of nobody's machine.

    Args:
        base: by name.
        shape: of the base.
        dtype: of weights and adapters.
        is_on_gpu: whether the base is on one.
    """
    bytes_per_ms = _GPU_BYTES_PER_MS if is_on_gpu else _CPU_BYTES_PER_MS
    flop_per_ms = _GPU_FLOP_PER_MS if is_on_gpu else _CPU_FLOP_PER_MS
    widths = [shape.module_shape(module) for module in LORA_MODULES]
    num_weights = shape.num_layers * sum(a * b for a, b in widths) + shape.vocab_size * shape.hidden_size
    step_ms = num_weights * DTYPE_BYTES[dtype] / bytes_per_ms
    row_bytes = shape.num_layers * sum(a + b for a, b in widths) * DTYPE_BYTES[dtype]
    rank_ms = row_bytes / bytes_per_ms
    return MachineProfile(
        measured_on=MeasuredOn(device="assumed", num_cores=0, torch_version="", measured_at="", commit=None),
        base=base,
        dtype=dtype,
        shape=shape,
        link=LinkModel(0.0, _LINK_BYTES_PER_MS, _NOT_FITTED) if is_on_gpu else None,
        exchange=None,
        prefill=PrefillModel(step_ms, 2 * num_weights / flop_per_ms, 0.0, 0.0, _NOT_FITTED),
        decode=DecodeModel(
            (1, _LARGEST_BATCH), (step_ms, step_ms * (1 + _REQUEST_SHARE * _LARGEST_BATCH)), _NOT_FITTED
        ),
        cpu_lora=None,
        tokens_per_worker=_TOKENS_PER_WORKER,
        padded_kernel=LoraKernelModel(True, rank_ms, 0.0, _NOT_FITTED),
        unpadded_kernel=LoraKernelModel(False, rank_ms, 0.0, _NOT_FITTED),
    )
