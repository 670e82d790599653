"""The options of `caraserve run`, each once: name, type, help."""

from __future__ import annotations

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

_MEMORY = "Memory and batches"
_DEFAULTS = "Defaults for rows that leave a key out"
_SESSION = "Stopping and going on"
_COLD = "Cold adapters"
_ARRIVALS = "When requests arrive"
_BOUNDS = "Deadlines and other bounds"
_FLEET = "Several replicas"

Requests = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[REQUESTS]",
        help="A .jsonl file (also .gz, .zst), - for standard input, a .parquet, .arrow or .csv file, a saved "
        "dataset's folder, or hf://OWNER/NAME?split=SPLIT; several, or 'day-*.jsonl', come one after the "
        "other. Before them, or alone: a job file, job.toml, whose keys are the options' names. Default: the "
        "embedded sample.",
        show_default=False,
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print errors only: no progress, notes and summary.")
]
PrintConfig = Annotated[
    bool,
    typer.Option("--print-config", help="Print all options as a job file, with where they are from."),
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
        help="Output folder. Default: ./caraserve-out/<stem of REQUESTS>.",
        show_default=False,
    ),
]
Weights = Annotated[WeightsSource, typer.Option(help="Random weights have the shape only, for benchmarks.")]
Device = Annotated[DeviceName, typer.Option(help="Where the base runs.")]
Dtype = Annotated[DtypeName, typer.Option(help="Of weights, cache and adapters.")]
TensorParallel = Annotated[
    int,
    typer.Option(
        min=1, help="Processes that hold the base together, on the CPU; on GPUs it does not work yet."
    ),
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
    typer.Option(
        # `cached` is for benchmarks: it is known, so that its refusal says so.
        metavar="|".join(name for name in get_args(ColdStartName) if name != "cached"),
        help="How an adapter that is not on the device comes to it.",
        rich_help_panel=_COLD,
    ),
]
CpuWorkers = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Processes that compute with cold adapters (cpu-assist). [default: cores less 2, 1 to 16]",
        rich_help_panel=_COLD,
    ),
]
EmulateLinkGbps = Annotated[
    float | None,
    typer.Option(help="On a GPU, for experiments: a link of so many GB/s each way.", rich_help_panel=_COLD),
]
Scheduling = Annotated[
    SchedulingName,
    typer.Option(
        help="Who is taken first: by slack, so that most bounds are met, or first come, first served.",
        rich_help_panel=_BOUNDS,
    ),
]
OnMissed = Annotated[
    OnMissedDeadline,
    typer.Option(
        help="A request past its deadline_ms: answer it late, or drop it: an error row.",
        rich_help_panel=_BOUNDS,
    ),
]
Rate = Annotated[
    float | None,
    typer.Option(
        help="Mean of requests a second, in the order of the file. [default: rows say when they arrive]",
        rich_help_panel=_ARRIVALS,
    ),
]
Arrivals = Annotated[
    ArrivalProcessName | None,
    typer.Option(
        help="The process that gives rows their arrival. [default: poisson with --rate]",
        show_default=False,
        rich_help_panel=_ARRIVALS,
    ),
]
Burstiness = Annotated[
    float | None,
    typer.Option(
        help="With gamma: coefficient of variation of the gaps. [default: 1, as poisson]",
        rich_help_panel=_ARRIVALS,
    ),
]
ArrivalTrace = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        help="With trace: a CSV file as Azure Functions' of 2019; --rate stretches its time to that mean.",
        show_default=False,
        rich_help_panel=_ARRIVALS,
    ),
]
TraceAdapters = Annotated[
    bool,
    typer.Option(
        "--trace-adapters",
        help="With trace: rows without the key adapter have that of the trace's function.",
        rich_help_panel=_ARRIVALS,
    ),
]
Replicas = Annotated[
    int | None,
    typer.Option(
        help="Engines that answer side by side: on a GPU each, or sharing the cores. [default: 1]",
        rich_help_panel=_FLEET,
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="A Ray cluster whose machines answer: HOST:PORT, or auto. [default: this machine]",
        show_default=False,
        rich_help_panel=_FLEET,
    ),
]
PlacementName = Annotated[
    str | None,
    typer.Option(
        metavar="|".join(PLACEMENT_NAMES),
        help=f"Which replica a request goes to. [default: {DEFAULT_PLACEMENT}]",
        show_default=False,
        rich_help_panel=_FLEET,
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
    typer.Option("--resume", help="Go on with a run that was stopped.", rich_help_panel=_SESSION),
]
RetryErrors = Annotated[
    bool,
    typer.Option(
        "--retry-errors", help="With --resume: try the rows in errors.jsonl again.", rich_help_panel=_SESSION
    ),
]
Limit = Annotated[int | None, typer.Option(min=1, help="Take only this many rows.", rich_help_panel=_SESSION)]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Check every row and adapter, answer and write nothing; errors go to stdout as JSONL.",
        rich_help_panel=_SESSION,
    ),
]

GpuMemory = Annotated[
    str | None,
    typer.Option(
        help="What a GPU gives to all of it: 40GB, 512MiB, or a fraction. [default: 0.9]",
        rich_help_panel=_MEMORY,
    ),
]
KvMemory = Annotated[
    str | None,
    typer.Option(
        help="KV cache: 4.3GB, 512MiB, or a fraction of --gpu-memory (CPU: of the free memory).",
        rich_help_panel=_MEMORY,
    ),
]
AdapterMemory = Annotated[
    str | None, typer.Option(help="Adapters on the device, likewise.", rich_help_panel=_MEMORY)
]
HostAdapterMemory = Annotated[
    str | None, typer.Option(help="Adapters kept in host memory, likewise.", rich_help_panel=_MEMORY)
]
MaxRunning = Annotated[int, typer.Option(min=1, help="Requests that run at once.", rich_help_panel=_MEMORY)]
MaxBatchTokens = Annotated[int, typer.Option(min=1, help="Tokens in one step.", rich_help_panel=_MEMORY)]
PrefillChunkTokens = Annotated[
    int, typer.Option(min=1, help="Prompt tokens of one request in one step.", rich_help_panel=_MEMORY)
]
KvBlockTokens = Annotated[
    int, typer.Option(min=1, help="Tokens in one block of the KV cache.", rich_help_panel=_MEMORY)
]
PrefixCaching = Annotated[
    bool, typer.Option(help="Share the cache of equal prompt beginnings.", rich_help_panel=_MEMORY)
]

DefaultAdapter = Annotated[str | None, typer.Option("--adapter", help="Adapter.", rich_help_panel=_DEFAULTS)]
MaxTokens = Annotated[int | None, typer.Option(help="[default: 64]", rich_help_panel=_DEFAULTS)]
Temperature = Annotated[
    float | None, typer.Option(help="0 is greedy. [default: 0]", rich_help_panel=_DEFAULTS)
]
TopP = Annotated[float | None, typer.Option(help="Nucleus sampling.", rich_help_panel=_DEFAULTS)]
TopK = Annotated[int | None, typer.Option(help="0 means all tokens.", rich_help_panel=_DEFAULTS)]
MinP = Annotated[
    float | None,
    typer.Option(help="Relative to the likeliest token.", rich_help_panel=_DEFAULTS),
]
Stop = Annotated[list[str] | None, typer.Option(help="Stop string (repeatable).", rich_help_panel=_DEFAULTS)]
StopTokenIds = Annotated[
    list[int] | None,
    typer.Option("--stop-token-ids", help="Stop token id (repeatable).", rich_help_panel=_DEFAULTS),
]
IgnoreEos = Annotated[
    bool,
    typer.Option("--ignore-eos", help="Go on after the EOS token.", rich_help_panel=_DEFAULTS),
]
RepetitionPenalty = Annotated[
    float | None, typer.Option(help="As in transformers.", rich_help_panel=_DEFAULTS)
]
PresencePenalty = Annotated[float | None, typer.Option(help="As in OpenAI's API.", rich_help_panel=_DEFAULTS)]
FrequencyPenalty = Annotated[
    float | None, typer.Option(help="As in OpenAI's API.", rich_help_panel=_DEFAULTS)
]
Logprobs = Annotated[
    int | None, typer.Option(help="Log-probabilities of this many top tokens.", rich_help_panel=_DEFAULTS)
]
DeadlineMs = Annotated[
    float | None, typer.Option(help="Bound on arrival to last token.", rich_help_panel=_DEFAULTS)
]
TtftSloMs = Annotated[
    float | None, typer.Option(help="Bound on arrival to first token.", rich_help_panel=_DEFAULTS)
]
TpotSloMs = Annotated[
    float | None, typer.Option(help="Bound on the mean gap between tokens.", rich_help_panel=_DEFAULTS)
]
