"""What the user asked of one run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from caraserve_cli.core import SamplingParams
from caraserve_cli.errors import OptionError
from caraserve_cli.fleet.fleet_options import FleetOptions
from caraserve_cli.fleet.options import ReplicaOptions
from caraserve_cli.job.arrival_options import ArrivalOptions
from caraserve_cli.report.run_facts import OptionValue, printable
from caraserve_cli.requests.columns import ColumnMap
from caraserve_cli.requests.export import OutputFormat
from caraserve_cli.requests.hub import HUB_PREFIX
from caraserve_cli.requests.row import OPENAI_SAMPLING, RowDefaults


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """Options of `caraserve run`. `requests` is a path, `-` for standard input, or a dataset; `more_requests`
    come after it. `resume_command` goes on with the run, for whoever has to.

    Raises:
        OptionError: two options exclude each other.
    """

    requests: str
    more_requests: tuple[str, ...] = ()
    out: Path
    replica: ReplicaOptions
    columns: ColumnMap | None = None
    defaults: RowDefaults = field(default_factory=RowDefaults)
    arriving: ArrivalOptions = field(default_factory=ArrivalOptions)
    fleet: FleetOptions = field(default_factory=FleetOptions)
    token_ids: bool = False
    output_format: OutputFormat = "jsonl"
    ordered: bool = False
    resume: bool = False
    retry_errors: bool = False
    resume_command: str | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.arriving.trace_adapters and self.defaults.adapter is not None:
            raise OptionError("--trace-adapters: leave out --adapter; both say what rows without one have")
        if self.replica.tensor_parallel > 1 and not self.fleet.is_local:
            raise OptionError(
                f"--tensor-parallel: the replicas of {self.fleet.asked_by} have one device each; "
                "leave one of the two out"
            )

    @property
    def sources(self) -> tuple[str, ...]:
        """All sources of requests, in order."""
        return (self.requests, *self.more_requests)

    def manifest(self, base: str, dtype: str, arrivals: str | None) -> dict[str, object]:
        """What a resumed run must agree on, because it changes answers or which rows there are.

        Args:
            base: the resolved base's name.
            dtype: the resolved dtype.
            arrivals: the process that gives rows their arrival, if one does, and a trace's adapters.
        """
        adapters = ", ".join(sorted(str(root.resolve()) for root in self.replica.adapter_roots))
        requests = ", ".join(map(_absolute_source, self.sources))
        return {
            "base": printable(_absolute_base(base)),
            "weights": self.replica.weights,
            "dtype": dtype,
            "adapters": printable(adapters),
            "requests": printable(requests),
            "seed": self.replica.seed,
            "lora_kernel": self.replica.lora_kernel,  # its sums may round otherwise
            "token_ids": self.token_ids,
            "arrivals": arrivals,
            "batch_defaults": self._batch_defaults(),
            **self._mapping(),
            **self._defaults(),
        }

    def _batch_defaults(self) -> dict[str, object]:
        """Of OpenAI Batch lines, where they are not those of our own."""
        defaults = self.defaults
        return {"temperature": defaults.batch_sampling.temperature, "max_tokens": defaults.batch_max_tokens}

    def _mapping(self) -> dict[str, OptionValue]:
        columns = self.columns or ColumnMap()
        pairs = ",".join(f"{key}={column}" for key, column in sorted(columns.columns.items()))
        return {"map": printable(pairs), "template": columns.template}

    def as_json(self) -> dict[str, OptionValue]:
        """All options, flat, for the report."""
        replica = dataclasses.asdict(self.replica)
        replica["adapter_roots"] = [str(root) for root in self.replica.adapter_roots]
        return {
            **replica,
            "requests": ", ".join(self.sources),
            "output_format": self.output_format,
            "ordered": self.ordered,
            "out": str(self.out),
            "token_ids": self.token_ids,
            "limit": self.limit,
            "arrivals": self.arriving.process,
            "rate": self.arriving.rate_per_s,
            "burstiness": self.arriving.burstiness,
            "arrival_trace": None if self.arriving.trace is None else str(self.arriving.trace),
            "trace_adapters": self.arriving.trace_adapters,
            **dataclasses.asdict(self.fleet),
            **self._mapping(),
            **self._defaults(),
        }

    def _defaults(self) -> dict[str, OptionValue]:
        sampling, bounds = self.defaults.sampling, self.defaults.bounds
        values = {
            "adapter": self.defaults.adapter,
            **dataclasses.asdict(sampling),
            **dataclasses.asdict(bounds),
        }
        return {f"default_{key}": list(v) if isinstance(v, tuple) else v for key, v in values.items()}


def updated_manifest(earlier: Mapping[str, object]) -> dict[str, object]:
    """What an earlier version wrote as a manifest, as this one would: it kept the base as it was typed, and
    knew one LoRA kernel, no arrival process and no OpenAI Batch lines."""
    # What was given for a key looks in an old manifest like the default of it.
    temperature, max_tokens = earlier.get("default_temperature"), earlier.get("default_max_tokens")
    batch_defaults = {
        "temperature": temperature or OPENAI_SAMPLING.temperature,
        "max_tokens": None if max_tokens == SamplingParams().max_tokens else max_tokens,
    }
    updated: dict[str, object] = {"lora_kernel": "mbgmv", "arrivals": None, "batch_defaults": batch_defaults}
    updated |= {"map": "", "template": None, **earlier}
    base = earlier.get("base")
    if isinstance(base, str):
        updated["base"] = printable(_absolute_base(base))
    return updated


def _absolute_source(source: str) -> str:
    return source if source == "-" or source.startswith(HUB_PREFIX) else str(Path(source).resolve())


def _absolute_base(base: str) -> str:
    """The path of a folder; a short name or hub id as it is."""
    folder = Path(base)
    return str(folder.resolve()) if folder.is_dir() else base
