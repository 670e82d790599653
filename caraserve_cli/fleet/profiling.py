"""Measures this machine with one base and fits all models; what `caraserve profile` does."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from statistics import median_low

import torch

from caraserve_cli.adapters.packing import fused_groups
from caraserve_cli.errors import ProfileError
from caraserve_cli.fleet.cold_start import TOKENS_PER_WORKER, choose_cores, profile_base
from caraserve_cli.fleet.machine import choose_device
from caraserve_cli.fleet.options import ReplicaOptions
from caraserve_cli.fleet.profile_cpu_lora import measure_round_trips
from caraserve_cli.fleet.profile_kernels import measure_kernels
from caraserve_cli.fleet.profile_link import measure_copies, measure_exchange
from caraserve_cli.fleet.profile_steps import StepProfiler, profile_adapters
from caraserve_cli.fleet.surroundings import Surroundings, copies_adapters
from caraserve_cli.fleet.synthetic_adapters import SyntheticAdapters
from caraserve_cli.perf.batch_load import BatchLoad
from caraserve_cli.perf.cpu_lora import CpuLoraModel, CpuLoraOp
from caraserve_cli.perf.decode import DecodeModel
from caraserve_cli.perf.decode_lora import DecodeLora
from caraserve_cli.perf.kv_cost import ContextStep, KvCost
from caraserve_cli.perf.link import LinkModel
from caraserve_cli.perf.lora_kernels import KernelTimes, LoraKernelModel
from caraserve_cli.perf.mixed import MixedModel, MixedStep
from caraserve_cli.perf.prefill import PrefillModel
from caraserve_cli.perf.profile import MachineProfile, MeasuredOn

# Told before each part, so that a long measurement is seen to move.
OnPart = Callable[[str], None]
# Told of each model that the profile goes without, why, and what follows from it.
OnLeftOut = Callable[[str], None]

# CPU workers share their machine with others, who slow them down for seconds: what follows no model is
# measured again, and of all measurements of an op the (lower) median counts.
_MOST_TRIES = 3
# What is told with a model that is left out.
_NO_RANKS_COUNT = "ranks count in predictions only as the steps of a run show it"
_NO_DECODE_LORA_COUNT = "the simulator takes what adapters add from the kernel's line, or as nothing"
_NO_MIXED_COUNT = "the simulator takes them as steps of as many tokens of prompts"
_NO_CONTEXTS_COUNT = "the length of contexts counts in predictions only as the steps of a run show it"
# Sizes of steps with prompts beside decoding requests from which a model of them is fitted.
_LEAST_MIXED = 12
# Of the adapters for which the tokens a worker takes are chosen.
_TYPICAL_RANK = 64


def measure_profile(
    options: ReplicaOptions, commit: str | None, on_part: OnPart, on_left_out: OnLeftOut
) -> MachineProfile:
    """Measure and fit.

    Args:
        options: the base, and how a run would use it.
        commit: of the program; None where nothing says it.
        on_part: is told what is measured next.
        on_left_out: is told what the profile goes without.

    Raises:
        OptionError: an option cannot be met on this machine.
        BaseModelError: the base is missing or cannot be honoured.
        InputError: no CPU worker starts.
        ProfileError: what was measured follows no model, or comes too late.
    """
    packed = copies_adapters(choose_device(options.device))
    adapters = SyntheticAdapters(profile_adapters(), packed=packed)
    surroundings = Surroundings.prepare(options, adapters.source, use_profile=False)
    shape, dtype, device = surroundings.base.config.shape, surroundings.dtype, surroundings.device
    # Before the base is loaded, with the caches and the memory to itself.
    on_part("LoRA on the CPU")
    cpu_lora = _measure_cpu_lora(surroundings, choose_cores(replace(options, cpu_workers=None)))
    link = exchange = None
    if device.type == "cuda":
        on_part("link")
        link = _fit_link("link", measure_copies(device))
        exchange = _fit_link("exchange", measure_exchange(device, shape.hidden_size, dtype))
    on_part("LoRA in decoding steps")
    kernels = _fit_kernels(_measure_kernels(surroundings, on_left_out), on_left_out)
    steps = _measure_steps(surroundings, options, on_part, on_left_out)
    first = fused_groups(shape)[0]
    return MachineProfile(
        measured_on=MeasuredOn(
            device=surroundings.device_description,
            num_cores=os.cpu_count() or 1,
            torch_version=torch.__version__,
            measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
            commit=commit,
        ),
        base=profile_base(options.base),
        dtype=str(dtype).removeprefix("torch."),
        shape=shape,
        link=link,
        exchange=exchange,
        prefill=steps.prefill,
        decode=steps.decode,
        padded_kernel=kernels.get(True),
        unpadded_kernel=kernels.get(False),
        kv_cost=steps.kv_cost,
        decode_lora=steps.decode_lora,
        mixed=steps.mixed,
        between_steps_ms=steps.between_steps_ms,
        cpu_lora=cpu_lora,
        tokens_per_worker=TOKENS_PER_WORKER
        if cpu_lora is None
        else cpu_lora.tokens_per_worker(first.in_width, first.out_widths[0], _TYPICAL_RANK),
    )


def _measure_cpu_lora(surroundings: Surroundings, cores: Sequence[int]) -> CpuLoraModel | None:
    """None only for a base on the CPU, which sleeps between its looks for results: the ops of a small base
    then follow no model, and no decision needs one, as nothing is copied.

    Raises:
        InputError: no CPU worker starts.
        ProfileError: ops for a GPU follow no model, or come too late.
    """
    device = surroundings.device
    times_ms: defaultdict[CpuLoraOp, list[float]] = defaultdict(list)
    for tries_left in reversed(range(_MOST_TRIES)):
        try:
            measured = measure_round_trips(surroundings.base.config.shape, surroundings.dtype, device, cores)
            for op, op_ms in zip(*measured, strict=True):
                times_ms[op].append(op_ms)
            return CpuLoraModel.fit(list(times_ms), [median_low(each) for each in times_ms.values()])
        except ProfileError:
            if device.type != "cuda":
                return None
            if not tries_left:
                raise
    raise AssertionError("the last try returns or raises")


@dataclass(frozen=True, slots=True)
class _Steps:
    """What steps of the base alone have told; see `MachineProfile`."""

    prefill: PrefillModel
    decode: DecodeModel
    kv_cost: KvCost | None
    decode_lora: DecodeLora | None
    mixed: MixedModel | None
    between_steps_ms: float


def _measure_steps(
    surroundings: Surroundings, options: ReplicaOptions, on_part: OnPart, on_left_out: OnLeftOut
) -> _Steps:
    """Of the base without adapters, and prompts beside decoding requests with them too.

    Raises:
        ProfileError: too few of the steps that are measured fit.
    """
    on_part("prefill steps")
    profiler = StepProfiler(surroundings, options)
    prefill_ms = profiler.prefill_steps()
    on_part("decoding steps")
    decode_ms = profiler.decode_steps()
    if len(prefill_ms) < 2 or not decode_ms:
        raise ProfileError(
            f"base '{options.base}': its context or the KV cache is too small for the steps that "
            "are measured; give more --kv-memory, or another base"
        )
    on_part("contexts of decoding steps")
    kv_cost = _fit_kv_cost(profiler.context_steps(), on_left_out)
    decode, kv_cost = _fit_decode(decode_ms, kv_cost, on_left_out, is_padded=profiler.is_padded)
    prefill = PrefillModel.fit(list(prefill_ms), list(prefill_ms.values()))
    on_part("prompts beside decoding requests")
    measured = profiler.mixed_steps()
    decode_lora = _fit_decode_lora(measured, decode, kv_cost, on_left_out)
    mixed = _fit_mixed(measured, prefill, on_left_out)
    return _Steps(prefill, decode, kv_cost, decode_lora, mixed, profiler.between_steps_ms)


def _measure_kernels(surroundings: Surroundings, on_left_out: OnLeftOut) -> list[KernelTimes]:
    """Before the base is loaded, which takes the device's memory."""
    try:
        return measure_kernels(surroundings.base.config.shape, surroundings.dtype, surroundings.device)
    except ProfileError as error:
        on_left_out(f"{error}; {_NO_RANKS_COUNT}")
        return []


def _fit_kernels(measured: Sequence[KernelTimes], on_left_out: OnLeftOut) -> dict[bool, LoraKernelModel]:
    """Whether it pads → each kernel whose times follow its line."""
    kernels: dict[bool, LoraKernelModel] = {}
    for times in measured:
        try:
            kernels[times.is_padded] = LoraKernelModel.fit(
                times.batches, times.times_ms, is_padded=times.is_padded
            )
        except ProfileError as error:
            on_left_out(f"{error}; {_NO_RANKS_COUNT}")
    return kernels


def _fit_kv_cost(measured: Mapping[ContextStep, float], on_left_out: OnLeftOut) -> KvCost | None:
    """None where contexts of two lengths do not fit, or their steps follow no line: it is told why."""
    try:
        return KvCost.fit(list(measured), list(measured.values()))
    except ProfileError as error:
        on_left_out(f"{error}; {_NO_CONTEXTS_COUNT}")
        return None


def _fit_mixed(
    measured: Mapping[MixedStep, float], prefill: PrefillModel, on_left_out: OnLeftOut
) -> MixedModel | None:
    """None where too few of them fit, or they follow no model: it is told why."""
    mixed = {step: time_ms for step, time_ms in measured.items() if step.prompt_tokens}
    try:
        if len(mixed) < _LEAST_MIXED:
            raise ProfileError(f"prompts beside decoding requests: {len(mixed)} sizes of them fit")
        return MixedModel.fit(list(mixed), list(mixed.values()), prefill.knee_tokens)
    except ProfileError as error:
        on_left_out(f"{error}; {_NO_MIXED_COUNT}")
        return None


def _fit_decode_lora(
    measured: Mapping[MixedStep, float],
    decode: DecodeModel,
    kv_cost: KvCost | None,
    on_left_out: OnLeftOut,
) -> DecodeLora | None:
    """None where too few of the steps fit, or they follow no model: it is told why."""
    batches: list[BatchLoad] = []
    added_ms: list[float] = []
    for step, time_ms in measured.items():
        if step.ranks.num_adapters and not step.prompt_tokens:
            batches.append(BatchLoad(step.num_decoding, step.ranks, step.kv_tokens))
            added_ms.append(time_ms - _base_ms(step, measured, decode, kv_cost))
    try:
        return DecodeLora.fit(batches, added_ms)
    except ProfileError as error:
        on_left_out(f"{error}; {_NO_DECODE_LORA_COUNT}")
        return None


def _base_ms(
    step: MixedStep, measured: Mapping[MixedStep, float], decode: DecodeModel, kv_cost: KvCost | None
) -> float:
    """Of a decoding step, without its adapters: of the same batch with about the same contexts, where that
    was measured, and not of a model of it."""
    token_ms = kv_cost.token_ms if kv_cost else 0.0
    same = [
        each
        for each in measured
        if not each.ranks.num_adapters and (each.prompt_tokens, each.num_decoding) == (0, step.num_decoding)
    ]
    if not same:
        return decode.step_ms(step.num_decoding) + token_ms * step.kv_tokens
    nearest = min(same, key=lambda each: abs(each.kv_tokens - step.kv_tokens))
    return measured[nearest] + token_ms * (step.kv_tokens - nearest.kv_tokens)


def _fit_decode(
    measured: Mapping[ContextStep, float],
    kv_cost: KvCost | None,
    on_left_out: OnLeftOut,
    *,
    is_padded: bool = False,
) -> tuple[DecodeModel, KvCost | None]:
    """Without what their short contexts took, for `kv_cost` counts all tokens in the cache; and `kv_cost`.

    A context cannot take all of a step, or more: where it seems to, one of the two measurements is noise, and
    it is the difference that is not believed.
    """
    base_ms = {step: time_ms - _kv_ms(kv_cost, step) for step, time_ms in measured.items()}
    if min(base_ms.values()) <= 0:
        on_left_out(
            "contexts of decoding steps: tokens in the cache seem to take longer than whole steps; "
            f"{_NO_CONTEXTS_COUNT}"
        )
        base_ms, kv_cost = dict(measured), None
    sizes = [step.batch_size for step in base_ms]
    return DecodeModel.fit(sizes, list(base_ms.values()), is_padded=is_padded), kv_cost


def _kv_ms(kv_cost: KvCost | None, step: ContextStep) -> float:
    return kv_cost.token_ms * step.kv_tokens if kv_cost else 0.0


def _fit_link(what: str, measured: Mapping[int, float]) -> LinkModel:
    return LinkModel.fit(what, list(measured), list(measured.values()))
