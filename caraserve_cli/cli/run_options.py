"""The options of `caraserve run`, each once: name, type, help."""

from __future__ import annotations

from functools import partial
from typing import Annotated, get_args

import typer

from caraserve_cli.fleet.fleet_options import DEFAULT_PLACEMENT, PLACEMENT_NAMES
from caraserve_cli.fleet.options import (
    ColdStartName,
    DeviceName,
    DtypeName,
    LoraKernel,
    OnMissedDeadline,
    SchedulingName,
    WeightsSource,
)
from caraserve_cli.job.arrival_options import ArrivalProcessName
from caraserve_cli.requests.export import OutputFormat

# Options by what they are about, as the help shows them.
_memory = partial(typer.Option, rich_help_panel="Memory and batches")
_default = partial(typer.Option, rich_help_panel="Defaults for rows that leave a key out")
_session = partial(typer.Option, rich_help_panel="Stopping and going on")
_cold = partial(typer.Option, rich_help_panel="Cold adapters")
_arriving = partial(typer.Option, rich_help_panel="When requests arrive")
_bounded = partial(typer.Option, rich_help_panel="Deadlines and other bounds")
_fleet = partial(typer.Option, rich_help_panel="Several replicas")

Requests = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[REQUESTS]",
        help="A .jsonl file (also .gz, .zst), - for standard input, a .parquet, .arrow or .csv file, a saved "
        "dataset's folder, or hf://OWNER/NAME?split=SPLIT; several, or 'day-*.jsonl', come one after the "
        "other. Anywhere among them, or alone: a job file, job.toml, whose keys are the options' names. "
        "Default: the embedded sample.",
        show_default=False,
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print errors only: no progress, notes and summary.")
]
Verbose = Annotated[
    bool,
    typer.Option("--verbose", "-v", help="Tell of each request on stderr: its adapter's way, times, bounds."),
]
PrintConfig = Annotated[
    bool,
    typer.Option("--print-config", help="Print the options as a job file, with where they are from."),
]
Map = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        metavar="KEY=COLUMN,...",
        help="Which column of a table is which key of a request: prompt=question,adapter=team (repeatable).",
        show_default=False,
    ),
]
Template = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|TEXT",
        help="A Jinja template that makes the prompt of a row's columns: 'Q: {{ question }}'.",
        show_default=False,
    ),
]
Base = Annotated[
    str | None,
    typer.Option(help="Base model: a checkpoint folder, a hub id, or a short name such as llama2-7b."),
]
# Folders come as texts: an empty one, which a `Path` takes for the current folder, must be seen.
Adapters = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATH",
        help="Folder of PEFT adapters (repeatable); each is named by its path below the folder.",
        show_default=False,
    ),
]
Out = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        help="Output folder. Default: ./caraserve-out/<stem of REQUESTS, of several the first>.",
        show_default=False,
    ),
]
Weights = Annotated[WeightsSource, typer.Option(help="Random weights have the shape only, for benchmarks.")]
Device = Annotated[DeviceName, typer.Option(help="Where the base runs.")]
Dtype = Annotated[DtypeName, typer.Option(help="Of weights, cache and adapters.")]
TensorParallel = Annotated[
    int,
    typer.Option(min=1, help="Processes that hold the base together, a GPU each, or all on the CPU."),
]
Seed = Annotated[
    int,
    typer.Option(min=0, help="Seeds rows without a seed (with their id), and random weights."),
]
LoraKernelName = Annotated[
    LoraKernel,
    typer.Option(
        help="On a GPU: mbgmv takes adapters as they are; bgmv pads all to the largest rank, to compare with."
    ),
]
ColdStart = Annotated[
    ColdStartName,
    _cold(
        # `cached` is for benchmarks: it is known, so that its refusal says so.
        metavar="|".join(name for name in get_args(ColdStartName) if name != "cached"),
        help="How an adapter that is not on the device comes to it.",
    ),
]
CpuWorkers = Annotated[
    int | None,
    _cold(
        min=0, help="Processes that compute with cold adapters (cpu-assist). [default: cores less 2, 1 to 16]"
    ),
]
EmulateLinkGbps = Annotated[
    float | None,
    _cold(help="On a GPU, for experiments: a link of so many GB/s each way."),
]
Scheduling = Annotated[
    SchedulingName,
    _bounded(help="Who is taken first: by slack, so that most bounds are met, or first come, first served."),
]
OnMissed = Annotated[
    OnMissedDeadline,
    _bounded(help="A request past its deadline_ms: answer it late, or drop it: an error row."),
]
Rate = Annotated[
    float | None,
    _arriving(
        help="Mean of requests a second, in the order of the file. [default: rows say when they arrive]"
    ),
]
Arrivals = Annotated[
    ArrivalProcessName | None,
    _arriving(
        help="The process that gives rows their arrival. [default: poisson with --rate]", show_default=False
    ),
]
Burstiness = Annotated[
    float | None,
    _arriving(help="With gamma: coefficient of variation of the gaps. [default: 1, as poisson]"),
]
ArrivalTrace = Annotated[
    str | None,
    _arriving(
        metavar="PATH",
        help="With trace: a CSV file as Azure Functions' of 2019; --rate stretches its time to that mean.",
        show_default=False,
    ),
]
TraceAdapters = Annotated[
    bool,
    _arriving(
        "--trace-adapters", help="With trace: rows without the key adapter have that of the trace's function."
    ),
]
Replicas = Annotated[
    int | None,
    _fleet(help="Engines that answer side by side: on a GPU each, or sharing the cores. [default: 1]"),
]
RayAddress = Annotated[
    str | None,
    _fleet(
        "--ray",
        metavar="ADDRESS",
        help="A Ray cluster whose machines answer: HOST:PORT, or auto. [default: this machine]",
        show_default=False,
    ),
]
PlacementName = Annotated[
    str | None,
    _fleet(
        metavar="|".join(PLACEMENT_NAMES),
        help=f"Which replica a request goes to. [default: {DEFAULT_PLACEMENT}]",
        show_default=False,
    ),
]
TokenIds = Annotated[bool, typer.Option("--token-ids", help="Write each answer's token_ids too.")]
OutputFormatName = Annotated[
    OutputFormat,
    typer.Option(help="Write the answers as outputs.parquet too, or as a dataset for load_from_disk."),
]
Ordered = Annotated[
    bool,
    typer.Option("--ordered", help="Write answers in the order of the input, not as they are finished."),
]

Resume = Annotated[
    bool,
    _session("--resume", help="Go on with a run that was stopped."),
]
RetryErrors = Annotated[
    bool,
    _session("--retry-errors", help="With --resume: try the rows in errors.jsonl again."),
]
Limit = Annotated[int | None, _session(min=1, help="Take only this many rows.")]
DryRun = Annotated[
    bool,
    _session(
        "--dry-run",
        help="Check every row and adapter, answer and write nothing; errors go to stdout as JSONL.",
    ),
]

GpuMemory = Annotated[
    str | None,
    _memory(help="What a GPU gives to all of it: 40GB, 512MiB, or a fraction. [default: 0.9]"),
]
KvMemory = Annotated[
    str | None,
    _memory(help="KV cache: 4.3GB, 512MiB, or a fraction of --gpu-memory (CPU: of the free memory)."),
]
AdapterMemory = Annotated[str | None, _memory(help="Adapters on the device, likewise.")]
HostAdapterMemory = Annotated[str | None, _memory(help="Adapters kept in host memory, likewise.")]
MaxRunning = Annotated[int, _memory(min=1, help="Requests that run at once.")]
MaxBatchTokens = Annotated[int, _memory(min=1, help="Tokens in one step.")]
PrefillChunkTokens = Annotated[int, _memory(min=1, help="Prompt tokens of one request in one step.")]
KvBlockTokens = Annotated[int, _memory(min=1, help="Tokens in one block of the KV cache.")]
PrefixCaching = Annotated[bool, _memory(help="Share the cache of equal prompt beginnings.")]

DefaultAdapter = Annotated[str | None, _default("--adapter", help="Adapter.")]
MaxTokens = Annotated[int | None, _default(help="[default: 64]")]
Temperature = Annotated[float | None, _default(help="0 is greedy. [default: 0]")]
TopP = Annotated[float | None, _default(help="Nucleus sampling.")]
TopK = Annotated[int | None, _default(help="0 means all tokens.")]
MinP = Annotated[
    float | None,
    _default(help="Relative to the likeliest token."),
]
Stop = Annotated[list[str] | None, _default(help="Stop string (repeatable).")]
StopTokenIds = Annotated[
    list[int] | None,
    _default("--stop-token-ids", help="Stop token id (repeatable)."),
]
IgnoreEos = Annotated[
    bool,
    _default("--ignore-eos", help="Go on after the EOS token."),
]
RepetitionPenalty = Annotated[float | None, _default(help="As in transformers.")]
PresencePenalty = Annotated[float | None, _default(help="As in OpenAI's API.")]
FrequencyPenalty = Annotated[float | None, _default(help="As in OpenAI's API.")]
Logprobs = Annotated[int | None, _default(help="Log-probabilities of this many top tokens.")]
DeadlineMs = Annotated[float | None, _default(help="Bound on arrival to last token.")]
TtftSloMs = Annotated[float | None, _default(help="Bound on arrival to first token.")]
TpotSloMs = Annotated[float | None, _default(help="Bound on the mean gap between tokens.")]
