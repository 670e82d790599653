"""A machine's profile as text for a terminal: the models, and where which way of a cold start wins. Measures
nothing and knows no files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from caraserve_cli.coldstart.arrival import Arrival
from caraserve_cli.coldstart.break_even import BreakEven
from caraserve_cli.core import ColdStart
from caraserve_cli.perf.cpu_lora import CpuLoraModel
from caraserve_cli.perf.decode_lora import DecodeLora
from caraserve_cli.perf.least_squares import FitQuality
from caraserve_cli.perf.link import LinkModel
from caraserve_cli.perf.lora_kernels import LoraKernelModel
from caraserve_cli.perf.mixed import MixedModel
from caraserve_cli.perf.profile import MachineProfile

# The chart: who arrives, and beside whom.
_PROMPT_TOKENS = (16, 32, 64, 128, 256, 512, 1024)
_LORA_RANKS = (8, 16, 32, 64, 128)
_NUM_DECODING = 8
_OUTPUT_TOKENS = 128
_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj")
# Cores that are no workers' own: who launches, and who reads.
_OTHER_CORES = 2


def render_profile(profile: MachineProfile) -> RenderableType:
    """What it was measured on, a table of the models, and the break-even chart."""
    on = profile.measured_on
    emulated = "" if on.emulated_link_gbps is None else f", link emulated at {on.emulated_link_gbps:g} GB/s"
    head = Text(
        f"{profile.base} in {profile.dtype} on {on.device}, {on.num_cores} cores, "
        f"torch {on.torch_version}{emulated}"
    )
    parts: list[RenderableType] = [head, "", _models_table(profile), ""]
    if profile.padded_kernel is None and profile.unpadded_kernel is None:
        parts.append(Text("No LoRA kernel was fitted: ranks count only as the steps of a run show it."))
    if profile.link is None:
        parts.append(Text("No link: the base runs on the CPU, and adapters are used where they are."))
    else:
        parts += [
            Text(
                f"Break-even, an adapter on {', '.join(_MODULES)} beside {_NUM_DECODING} decoding requests:"
            ),
            _chart(profile),
        ]
    return Group(*parts)


def _models_table(profile: MachineProfile) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("model", no_wrap=True)
    for heading in ("R²", "worst", "points"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("ms")
    for name, formula, quality in _models(profile):
        table.add_row(
            name, f"{quality.r2:.3f}", f"{quality.largest_residual:.0%}", str(quality.num_points), formula
        )
    return table


def _models(profile: MachineProfile) -> Iterator[tuple[str, str, FitQuality]]:
    for name, link in (("link", profile.link), ("exchange with workers", profile.exchange)):
        if link is not None:
            yield name, _link_words(link), link.quality
    prefill, decode, cpu_lora = profile.prefill, profile.decode, profile.cpu_lora
    knee = f" + {prefill.gamma_ms:.4g} · (tokens above {prefill.knee_tokens:g})" if prefill.gamma_ms else ""
    yield "prefill step", f"{prefill.alpha_ms:.4g} + {prefill.beta_ms:.4g} · tokens{knee}", prefill.quality
    points = zip(decode.batch_sizes, decode.steps_ms, strict=True)
    yield "decode step", ", ".join(f"{size}: {step_ms:.3g}" for size, step_ms in points), decode.quality
    if cpu_lora is not None:
        words = f"{_cpu_lora_words(cpu_lora)}; {profile.tokens_per_worker} tokens a worker"
        yield "LoRA on the CPU", words, cpu_lora.quality
    if profile.kv_cost is not None:
        yield "contexts", f"{profile.kv_cost.token_ms:.4g} · tokens in the cache", profile.kv_cost.quality
    if (mixed := profile.mixed) is not None:
        yield "prompt beside others", _mixed_words(mixed), mixed.quality
    if (lora := profile.decode_lora) is not None:
        yield "adapters in a step", _decode_lora_words(lora), lora.quality
    for kernel in (profile.padded_kernel, profile.unpadded_kernel):
        if kernel is not None:
            yield _kernel_words(kernel)


def _cpu_lora_words(cpu_lora: CpuLoraModel) -> str:
    """An op, from sending its rows until the results are added: the costs that it has."""
    costs = (
        (cpu_lora.module_ms, "modules"),
        (cpu_lora.product_ms, "products"),
        (cpu_lora.weight_ms, "weights"),
        (cpu_lora.element_ms, "elements"),
        (cpu_lora.worker_ms, "further workers"),
        (cpu_lora.exchanged_ms, "elements exchanged"),
        (cpu_lora.meeting_ms, "modules shared"),
    )
    return _cost_words(cpu_lora.op_ms, costs)


def _mixed_words(mixed: MixedModel) -> str:
    costs = (
        (mixed.beta_ms, "tokens"),
        (mixed.gamma_ms, f"tokens above {mixed.knee_tokens:g}"),
        (mixed.request_ms, "decoding requests"),
        (mixed.kv_token_ms, "tokens in the cache"),
        (mixed.lora_ms, "whether with adapters"),
        (mixed.lora_rank_ms, "sum of ranks"),
        (mixed.lora_request_ms, "decoding requests with adapters"),
        (mixed.lora_token_ms, "prompt tokens with adapters"),
    )
    return _cost_words(mixed.alpha_ms, costs)


def _decode_lora_words(lora: DecodeLora) -> str:
    points = zip(lora.lora_rank_sums, lora.steps_ms, strict=True)
    words = ", ".join(f"{lora_rank_sum}: {step_ms:.3g}" for lora_rank_sum, step_ms in points)
    return f"sum of ranks {words} + {lora.request_ms:.3g} · further requests"


def _cost_words(first_ms: float, costs: Iterable[tuple[float, str]]) -> str:
    """A sum; terms of 0 are left out."""
    words = [f"{first_ms:.3g}", *(f"{cost_ms:.3g} · {what}" for cost_ms, what in costs if cost_ms)]
    return " + ".join(words)


def _link_words(link: LinkModel) -> str:
    return f"{link.latency_ms:.4g} + bytes at {link.gbps:.3g} GB/s"


def _kernel_words(kernel: LoraKernelModel) -> tuple[str, str, FitQuality]:
    name, work = ("bgmv", "adapters · largest rank") if kernel.is_padded else ("mbgmv", "sum of ranks")
    return f"{name} kernel", f"{kernel.beta_ms:.4g} + {kernel.alpha_ms:.4g} · {work}", kernel.quality


def _chart(profile: MachineProfile) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("prompt tokens", justify="right", no_wrap=True)
    for lora_rank in _LORA_RANKS:
        table.add_column(f"rank {lora_rank}", no_wrap=True)
    break_even = BreakEven(profile)
    for prompt_tokens in _PROMPT_TOKENS:
        ways = (_winner(break_even, prompt_tokens, lora_rank) for lora_rank in _LORA_RANKS)
        table.add_row(str(prompt_tokens), *ways)
    return table


def _winner(break_even: BreakEven, prompt_tokens: int, lora_rank: int) -> str:
    """The way that wins: of cpu-assist the layers, of a request that is held how long."""
    profile = break_even.profile
    shape = profile.shape
    widths = sum(sum(shape.module_shape(module)) for module in _MODULES)
    arrival = Arrival(
        prompt_tokens=prompt_tokens,
        max_output_tokens=_OUTPUT_TOKENS,
        lora_rank=lora_rank,
        adapter_bytes=shape.num_layers * lora_rank * widths * profile.dtype_bytes,
        num_layers=shape.num_layers,
        batch_tokens=_NUM_DECODING,
        num_decoding=_NUM_DECODING,
        link_backlog_ms=0.0,
        free_workers=max(1, profile.measured_on.num_cores - _OTHER_CORES),
        can_assist=True,
        beside_wait_ms=0.0,
    )
    decision = break_even.best(arrival).decision
    way = str(decision.how)
    if decision.how is ColdStart.CPU_ASSIST:
        way += f" {decision.cpu_layers}/{shape.num_layers}"
    if decision.hold_ms:
        way += f" after {decision.hold_ms:.0f} ms"
    return f"{way} beside" if decision.beside_ms else way
