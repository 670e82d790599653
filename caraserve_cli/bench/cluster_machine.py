"""The machine of a simulated cluster: a profile that `caraserve profile` has measured, or constants.

    profile = "baselines/machine.json"      # beside the recipe

or

    [machine]
    name = "A10-like"
    base = "llama2-7b"                      # a short name; its shape is taken
    dtype = "float16"
    link = { latency_ms = 0.02, gbps = 24 }
    prefill = { alpha_ms = 24, beta_ms = 0, gamma_ms = 0.2, knee_tokens = 128 }
    decode = { batch_sizes = [1, 32], steps_ms = [22.5, 24] }
    cpu_lora = { op_ms = …, module_ms = …, product_ms = …, weight_ms = …, element_ms = …, worker_ms = …,
                 exchanged_ms = …, meeting_ms = …, tokens_per_worker = 55 }      # optional

and beside either of them

    kv_token_ms = 0.0009                    # optional, of each token in the cache, in a decoding step; a
                                            # profile may have it itself
    [lora_kernel.bgmv]                      # what an adapter adds to a step; a profile may have it itself
    alpha_ms = 0.009
    beta_ms = 0
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from caraserve_cli.bench.recipe_table import RecipeTable
from caraserve_cli.core import BaseShape
from caraserve_cli.errors import InputError
from caraserve_cli.model.shapes import KNOWN_BASES
from caraserve_cli.perf.cpu_lora import CpuLoraModel
from caraserve_cli.perf.decode import DecodeModel
from caraserve_cli.perf.least_squares import FitQuality
from caraserve_cli.perf.link import BYTES_PER_MS_OF_GBPS, LinkModel
from caraserve_cli.perf.lora_kernels import LoraKernelModel
from caraserve_cli.perf.prefill import PrefillModel
from caraserve_cli.perf.profile import DTYPE_BYTES, MachineProfile, MeasuredOn
from caraserve_cli.perf.profile_json import from_json
from caraserve_cli.perf.step_model import StepModel

# Of constants there is nothing to fit.
_STATED = FitQuality(1.0, 0.0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedMachine:
    """One machine.

    Attributes:
        name: in words.
        is_measured: whether its profile is; constants otherwise.
        kv_token_ms: as in `StepModel.of`.
    """

    name: str
    is_measured: bool
    profile: MachineProfile
    kv_token_ms: float | None

    @property
    def kv_token_bytes(self) -> int:
        """Of the keys and values of one token."""
        shape = self.profile.shape
        return 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * self.profile.dtype_bytes

    def step_model(self, *, is_padded: bool, max_batch_tokens: int) -> StepModel:
        """With one of the LoRA kernels."""
        return StepModel.of(
            self.profile,
            is_padded=is_padded,
            max_batch_tokens=max_batch_tokens,
            kv_token_ms=self.kv_token_ms,
        )


def parse_machine(table: RecipeTable, path: Path, kernels: tuple[str, ...]) -> SimulatedMachine:
    """The machine that the keys of a recipe name.

    Args:
        table: of the whole recipe.
        path: of the recipe; a profile lies beside it.
        kernels: that are simulated.

    Raises:
        InputError: the profile cannot be read.
        OptionError: a key is missing, unknown or wrong.
        ProfileError: the profile is none of this version.
    """
    named = table.optional_text("profile")
    if named is not None:
        table.refuse("machine", "beside 'profile'")
        profile = _read_profile(path.parent / named)
        name = f"{profile.measured_on.device}, {named}"
    else:
        profile, name = _parse_constants(table.table("machine"))
    profile = _with_kernels(table, profile, kernels)
    return SimulatedMachine(
        name=name,
        is_measured=named is not None,
        profile=profile,
        kv_token_ms=table.optional_positive("kv_token_ms"),
    )


def _read_profile(path: Path) -> MachineProfile:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"'profile': '{path}' cannot be read: {error.strerror}") from error
    return from_json(content, str(path))


def _with_kernels(table: RecipeTable, profile: MachineProfile, kernels: tuple[str, ...]) -> MachineProfile:
    """The profile with the LoRA kernels that the recipe states in place of its own: what was measured with
    these goes with them."""
    padded, unpadded = profile.padded_kernel, profile.unpadded_kernel
    stated = table.optional_table("lora_kernel")
    if stated is not None:
        if (own := stated.optional_table("bgmv")) is not None:
            padded = _parse_kernel(own, is_padded=True)
        if (own := stated.optional_table("mbgmv")) is not None:
            unpadded = _parse_kernel(own, is_padded=False)
            profile = replace(profile, decode_lora=None, mixed=None)
        stated.close()
    for kernel, model in (("bgmv", padded), ("mbgmv", unpadded)):
        if kernel in kernels and model is None:
            must_be = (
                f"without '{kernel}', which the machine has no model of, or given in [lora_kernel.{kernel}]"
            )
            raise table.wrong("lora_kernels", must_be, list(kernels))
    return replace(profile, padded_kernel=padded, unpadded_kernel=unpadded)


def _parse_kernel(table: RecipeTable, *, is_padded: bool) -> LoraKernelModel:
    model = LoraKernelModel(
        is_padded, table.positive("alpha_ms"), table.optional_positive("beta_ms") or 0.0, _STATED
    )
    table.close()
    return model


def _parse_constants(table: RecipeTable) -> tuple[MachineProfile, str]:
    name = table.text("name")
    base = table.choice("base", tuple(KNOWN_BASES), "")
    cpu = table.optional_table("cpu_lora")
    profile = MachineProfile(
        measured_on=MeasuredOn(
            device=name, num_cores=0, torch_version="", measured_at="not measured", commit=None
        ),
        base=base,
        dtype=table.choice("dtype", tuple(DTYPE_BYTES), "float16"),
        shape=_shape(base),
        link=parse_link(table.table("link")),
        exchange=None,
        prefill=_parse_prefill(table.table("prefill")),
        decode=_parse_decode(table.table("decode")),
        cpu_lora=None if cpu is None else _parse_cpu(cpu),
        tokens_per_worker=1 if cpu is None else cpu.count("tokens_per_worker", None),
    )
    for each in (cpu, table):
        if each is not None:
            each.close()
    return profile, name


def parse_link(table: RecipeTable) -> LinkModel:
    """A link, or a disk, as its table states it.

    Raises:
        OptionError: a key is missing, unknown or wrong.
    """
    bytes_per_ms = table.positive("gbps") * BYTES_PER_MS_OF_GBPS
    link = LinkModel(table.optional_positive("latency_ms") or 0.0, bytes_per_ms, _STATED)
    table.close()
    return link


def _parse_cpu(table: RecipeTable) -> CpuLoraModel:
    return CpuLoraModel(
        op_ms=table.zero_or_more("op_ms"),
        module_ms=table.zero_or_more("module_ms"),
        product_ms=table.zero_or_more("product_ms"),
        weight_ms=table.zero_or_more("weight_ms"),
        element_ms=table.zero_or_more("element_ms"),
        worker_ms=table.zero_or_more("worker_ms"),
        exchanged_ms=table.zero_or_more("exchanged_ms"),
        meeting_ms=table.zero_or_more("meeting_ms"),
        quality=_STATED,
    )


def _parse_prefill(table: RecipeTable) -> PrefillModel:
    model = PrefillModel(
        table.zero_or_more("alpha_ms"),
        table.zero_or_more("beta_ms"),
        table.zero_or_more("gamma_ms"),
        table.zero_or_more("knee_tokens"),
        _STATED,
    )
    table.close()
    return model


def _parse_decode(table: RecipeTable) -> DecodeModel:
    sizes, steps_ms = table.counts("batch_sizes"), table.positives("steps_ms")
    if len(sizes) != len(steps_ms):
        raise table.wrong("steps_ms", f"{len(sizes)} numbers, as many as 'batch_sizes'", list(steps_ms))
    if list(sizes) != sorted(set(sizes)) or list(steps_ms) != sorted(steps_ms):
        raise table.wrong("batch_sizes", "ascending, and 'steps_ms' with it", list(sizes))
    table.close()
    return DecodeModel(sizes, steps_ms, _STATED)


def _shape(base: str) -> BaseShape:
    """Of a short name. Read from its keys: `model.config` would start torch."""
    config = KNOWN_BASES[base].config

    def size(key: str, default: int | None = None) -> int:
        value = config.get(key, default)
        assert isinstance(value, int)
        return value

    num_heads, hidden_size = size("num_attention_heads"), size("hidden_size")
    return BaseShape(
        num_layers=size("num_hidden_layers"),
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=size("num_key_value_heads"),
        head_dim=size("head_dim", hidden_size // num_heads),
        intermediate_size=size("intermediate_size"),
        vocab_size=size("vocab_size"),
    )
