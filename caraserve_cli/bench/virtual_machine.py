"""The machine of a profile in place of this one: what a recipe would measure there, on virtual time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caraserve_cli import __version__
from caraserve_cli.bench.engine_case import EngineRecipe
from caraserve_cli.bench.facts import code_commit
from caraserve_cli.bench.result_facts import ResultFacts
from caraserve_cli.bench.serving_run import ServingRun
from caraserve_cli.bench.synthetic import adapters_of
from caraserve_cli.bench.timed_case import TimedCase
from caraserve_cli.bench.virtual_replica import (
    adapter_infos,
    check_lora_kernel,
    replica_facts,
    serve_virtually,
)
from caraserve_cli.config import EngineConfig, parse_size
from caraserve_cli.core import Request
from caraserve_cli.errors import InputError, OptionError
from caraserve_cli.fleet.cold_start import MOST_WORKERS, OTHER_CORES, profile_base
from caraserve_cli.fleet.options import ReplicaOptions
from caraserve_cli.model.config import load_decoder_config, parse_decoder_config
from caraserve_cli.model.shapes import KNOWN_BASES
from caraserve_cli.perf.profile import MachineProfile
from caraserve_cli.perf.profile_json import from_json
from caraserve_cli.perf.step_model import StepModel


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualFacts(ResultFacts):
    """Under which circumstances was simulated.

    Attributes:
        machine: in words, of the profile.
        profile: its file.
        profile_measured_at: when it was measured.
        has_lora_model: whether the profile says what adapters add to steps, in every case; without, they add
            nothing.
        has_mixed_model: whether it says what prompts beside decoding requests take; without, they take what
            as many tokens of prompts alone do.
        is_simulated: always true; in a result that was measured there is no such key.
    """

    machine: str
    profile: str
    profile_measured_at: str
    base: str
    dtype: str
    repeats: int
    has_lora_model: bool
    has_mixed_model: bool
    is_simulated: bool = True


@dataclass(frozen=True, slots=True)
class VirtualMachine:
    """One that was measured once; `path` is where that is written."""

    profile: MachineProfile
    path: Path

    @classmethod
    def read(cls, path: Path) -> VirtualMachine:
        """That of a profile's file.

        Raises:
            InputError: it cannot be read.
            ProfileError: it is none of this version.
        """
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(f"--profile: '{path}' cannot be read: {error.strerror}") from error
        return cls(from_json(content, str(path)), path)

    def facts(self, recipe: EngineRecipe[Any]) -> VirtualFacts:
        """Of a recipe that was simulated."""
        return VirtualFacts(
            recipe=recipe.name,
            description=recipe.description,
            caraserve_version=__version__,
            commit=code_commit(),
            machine=self.profile.measured_on.device,
            profile=str(self.path),
            profile_measured_at=self.profile.measured_on.measured_at,
            base=self.profile.base,
            dtype=self.profile.dtype,
            repeats=recipe.repeats,
            has_lora_model=all(self._has_lora_model(case.options) for case in recipe.cases),
            has_mixed_model=self.profile.mixed is not None,
        )

    def serve(
        self, recipe_name: str, case: TimedCase, cold_start: str, scheduling: str, requests: Sequence[Request]
    ) -> ServingRun:
        """What a replica of a case gives for requests in their time, with no adapter on the device at first.

        Raises:
            OptionError: the profile is not of the case's base, or the case leaves to the machine what only a
                true one can tell.
        """
        where = f"recipe '{recipe_name}', case '{case.name}'"
        self._check(where, case)
        profile, options = self.profile, case.options
        step_model = StepModel.of(
            profile,
            is_padded=options.lora_kernel == "bgmv",
            max_batch_tokens=options.max_batch_tokens,
        )
        num_workers = options.cpu_workers
        if num_workers is None:
            num_workers = max(1, min(profile.measured_on.num_cores - OTHER_CORES, MOST_WORKERS))
        facts = replica_facts(profile, step_model, self._config(where, case), num_workers)
        try:
            return serve_virtually(
                facts, adapter_infos(adapters_of(case), profile), cold_start, scheduling, requests
            )
        except OptionError as error:
            raise OptionError(f"{where}: {error}; give more 'kv_memory' or 'adapter_memory'") from error

    def _has_lora_model(self, options: ReplicaOptions) -> bool:
        profile = self.profile
        if options.lora_kernel == "bgmv":
            return profile.padded_kernel is not None
        return profile.unpadded_kernel is not None or profile.decode_lora is not None

    def _check(self, where: str, case: TimedCase) -> None:
        profile, options = self.profile, case.options
        if profile.base != profile_base(options.base) or options.dtype not in ("auto", profile.dtype):
            raise OptionError(
                f"--profile: '{self.path}' is of '{profile.base}' in {profile.dtype}, and {where} is about "
                f"'{options.base}' in {options.dtype}; give a profile of that"
            )
        check_lora_kernel(where, options.lora_kernel, profile, f"the profile '{self.path}'")
        has_gpu = profile.link is not None
        if options.device != "auto" and (options.device == "cuda") != has_gpu:
            raise OptionError(
                f"{where}: 'device' is '{options.device}', and the profile '{self.path}' is of "
                f'{profile.measured_on.device}; give a profile of such a device, or set device = "auto"'
            )
        if options.gpu_memory is not None:
            raise OptionError(
                f"{where}: 'gpu_memory' has no meaning on virtual time, where 'kv_memory' and "
                "'adapter_memory' say it; leave it out"
            )
        num_tokens, context_tokens = case.prompt_tokens + case.output_tokens, _context_tokens(options.base)
        if context_tokens is not None and num_tokens > context_tokens:
            raise OptionError(
                f"{where}: 'prompt_tokens' and 'output_tokens' are {num_tokens} together, and the context of "
                f"'{options.base}' has {context_tokens}; give fewer"
            )

    def _config(self, where: str, case: TimedCase) -> EngineConfig:
        """The sizes of a replica; a true one would take what its device leaves."""
        options, profile = case.options, self.profile
        if options.kv_memory is None or options.adapter_memory is None:
            missing = "kv_memory" if options.kv_memory is None else "adapter_memory"
            raise OptionError(
                f"{where}: '{missing}' is missing, and on virtual time there is no device whose memory says "
                "it; give it in bytes"
            )
        shape = profile.shape
        token_bytes = 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * profile.dtype_bytes
        block_bytes = token_bytes * options.kv_block_tokens
        kv_bytes = _bytes_of(f"{where}: 'kv_memory'", options.kv_memory)
        if kv_bytes < block_bytes:
            raise OptionError(
                f"{where}: 'kv_memory' is {kv_bytes:,} bytes, and a block of the cache takes "
                f"{block_bytes:,}; give more"
            )
        return EngineConfig(
            num_kv_blocks=kv_bytes // block_bytes,
            adapter_memory_bytes=_bytes_of(f"{where}: 'adapter_memory'", options.adapter_memory),
            max_context_tokens=case.prompt_tokens + case.output_tokens,
            kv_block_tokens=options.kv_block_tokens,
            max_running=options.max_running,
            max_batch_tokens=options.max_batch_tokens,
            prefill_chunk_tokens=options.prefill_chunk_tokens,
            prefix_caching=options.prefix_caching,
        )


def _context_tokens(base: str) -> int | None:
    """Of a folder or a short name; None for what only the hub, which nothing here waits for, could tell.

    Raises:
        BaseModelError: the folder's config cannot be honoured.
    """
    if Path(base).is_dir():
        return load_decoder_config(Path(base)).context_tokens
    known = KNOWN_BASES.get(base.lower())
    if known is None:
        return None
    return parse_decoder_config(known.config, where=f"base model {base}").context_tokens


def _bytes_of(key: str, text: str) -> int:
    """A size of a recipe, where there is no device of which it could be a share.

    Raises:
        OptionError: it is none, or a share.
    """
    try:
        float(text)
    except ValueError:
        return parse_size(key, text, total_bytes=0)
    raise OptionError(
        f"{key}: {text} is a share of a device's memory, which there is none of on virtual time; give it in "
        "bytes, such as 40GB"
    )
