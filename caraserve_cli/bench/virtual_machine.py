"""The machine of a profile in place of this one: what a recipe would measure there, on virtual time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caraserve_cli import __version__
from caraserve_cli.bench.engine_case import EngineRecipe
from caraserve_cli.bench.facts import code_commit
from caraserve_cli.bench.serving_run import ServingRun
from caraserve_cli.bench.synthetic import adapters_of
from caraserve_cli.bench.timed_case import TimedCase
from caraserve_cli.bench.virtual_replica import adapter_infos, replica_facts, serve_virtually
from caraserve_cli.config import EngineConfig, parse_size
from caraserve_cli.core import Request
from caraserve_cli.errors import InputError, OptionError
from caraserve_cli.fleet.cold_start import MOST_WORKERS, OTHER_CORES, profile_base
from caraserve_cli.perf.profile import MachineProfile
from caraserve_cli.perf.profile_json import from_json
from caraserve_cli.perf.step_model import StepModel


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualFacts:
    """Under which circumstances was simulated.

    Attributes:
        machine: in words, of the profile.
        profile: its file.
        profile_measured_at: when it was measured.
        is_simulated: always true; in a result that was measured there is no such key.
        commit: of the code that simulates, None where nothing says it.
    """

    recipe: str
    description: str
    caraserve_version: str
    commit: str | None
    machine: str
    profile: str
    profile_measured_at: str
    base: str
    dtype: str
    repeats: int
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
        return serve_virtually(
            facts, adapter_infos(adapters_of(case), profile), cold_start, scheduling, requests
        )

    def _check(self, where: str, case: TimedCase) -> None:
        profile, options = self.profile, case.options
        if profile.base != profile_base(options.base) or options.dtype not in ("auto", profile.dtype):
            raise OptionError(
                f"--profile: '{self.path}' is of '{profile.base}' in {profile.dtype}, and {where} is about "
                f"'{options.base}' in {options.dtype}; give a profile of that"
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
        kv_bytes = parse_size(f"{where}: 'kv_memory'", options.kv_memory, total_bytes=0)
        return EngineConfig(
            num_kv_blocks=kv_bytes // (token_bytes * options.kv_block_tokens),
            adapter_memory_bytes=parse_size(
                f"{where}: 'adapter_memory'", options.adapter_memory, total_bytes=0
            ),
            max_context_tokens=case.prompt_tokens + case.output_tokens,
            kv_block_tokens=options.kv_block_tokens,
            max_running=options.max_running,
            max_batch_tokens=options.max_batch_tokens,
            prefill_chunk_tokens=options.prefill_chunk_tokens,
            prefix_caching=options.prefix_caching,
        )
