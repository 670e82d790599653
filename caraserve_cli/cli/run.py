"""`caraserve run`: parse, run, print, exit status."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from caraserve_cli.cli import run_options as o
from caraserve_cli.cli.command_age import command_age_s
from caraserve_cli.cli.job_file import config_text
from caraserve_cli.cli.resume_command import from_anywhere, resume_command
from caraserve_cli.errors import ExitStatus, OptionError, RowError
from caraserve_cli.fleet.fleet_options import FleetOptions
from caraserve_cli.fleet.options import ReplicaOptions
from caraserve_cli.import_pause import import_pause

if TYPE_CHECKING:
    from caraserve_cli.job.options import RunOptions
    from caraserve_cli.job.stop_request import StopRequest
    from caraserve_cli.requests.columns import ColumnMap
    from caraserve_cli.requests.row import RowDefaults

_REPLICA = ReplicaOptions(base="")  # for its defaults
_OPTION_NAMES = {"mapping": "map"}  # where the parameter could not have the option's name
_STDIN = "-"
_LOADING = "Starting: loading PyTorch and transformers"  # which takes longest, unless the base is large
_MAX_INTEGER = 2**63 - 1  # of 64 bits, as JSON's readers and itertools have it


def run(
    context: typer.Context,
    requests: o.Requests = None,
    base: o.Base = None,
    mapping: o.Map = None,
    template: o.Template = None,
    adapters: o.Adapters = None,
    out: o.Out = None,
    weights: o.Weights = _REPLICA.weights,
    device: o.Device = _REPLICA.device,
    dtype: o.Dtype = _REPLICA.dtype,
    tensor_parallel: o.TensorParallel = _REPLICA.tensor_parallel,
    seed: o.Seed = _REPLICA.seed,
    lora_kernel: o.LoraKernelName = _REPLICA.lora_kernel,
    cold_start: o.ColdStart = _REPLICA.cold_start,
    cpu_workers: o.CpuWorkers = None,
    emulate_link_gbps: o.EmulateLinkGbps = None,
    scheduling: o.Scheduling = _REPLICA.scheduling,
    on_missed_deadline: o.OnMissed = _REPLICA.on_missed_deadline,
    rate: o.Rate = None,
    arrivals: o.Arrivals = None,
    burstiness: o.Burstiness = None,
    arrival_trace: o.ArrivalTrace = None,
    trace_adapters: o.TraceAdapters = False,
    replicas: o.Replicas = None,
    ray: o.RayAddress = None,
    placement: o.PlacementName = None,
    token_ids: o.TokenIds = False,
    output_format: o.OutputFormatName = "jsonl",
    ordered: o.Ordered = False,
    resume: o.Resume = False,
    retry_errors: o.RetryErrors = False,
    limit: o.Limit = None,
    dry_run: o.DryRun = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    print_config: o.PrintConfig = False,
    gpu_memory: o.GpuMemory = None,
    kv_memory: o.KvMemory = None,
    adapter_memory: o.AdapterMemory = None,
    host_adapter_memory: o.HostAdapterMemory = None,
    max_running: o.MaxRunning = _REPLICA.max_running,
    max_batch_tokens: o.MaxBatchTokens = _REPLICA.max_batch_tokens,
    prefill_chunk_tokens: o.PrefillChunkTokens = _REPLICA.prefill_chunk_tokens,
    kv_block_tokens: o.KvBlockTokens = _REPLICA.kv_block_tokens,
    prefix_caching: o.PrefixCaching = _REPLICA.prefix_caching,
    adapter: o.DefaultAdapter = None,
    max_tokens: o.MaxTokens = None,
    temperature: o.Temperature = None,
    top_p: o.TopP = None,
    top_k: o.TopK = None,
    min_p: o.MinP = None,
    stop: o.Stop = None,
    stop_token_ids: o.StopTokenIds = None,
    ignore_eos: o.IgnoreEos = False,
    repetition_penalty: o.RepetitionPenalty = None,
    presence_penalty: o.PresencePenalty = None,
    frequency_penalty: o.FrequencyPenalty = None,
    logprobs: o.Logprobs = None,
    deadline_ms: o.DeadlineMs = None,
    ttft_slo_ms: o.TtftSloMs = None,
    tpot_slo_ms: o.TpotSloMs = None,
) -> None:
    """Answer the requests, each with its adapter; write outputs and a report.

    Without REQUESTS, --base and --adapters: the embedded sample, a small trained model with trained adapters
    of several ranks.
    """
    given = dict(locals())
    options = _run_options(dict(given))
    if print_config:
        typer.echo(config_text(context, given))
        raise typer.Exit
    wish: StopRequest = context.obj
    if dry_run:
        raise typer.Exit(_check(options, wish))
    raise typer.Exit(_answer(options, wish, quiet=quiet, verbose=verbose))


def _run_options(given: dict[str, Any]) -> RunOptions:
    """The options as one object.

    Raises:
        OptionError: they do not fit together, or a default is out of range.
    """
    from caraserve_cli.job.arrival_options import ArrivalOptions
    from caraserve_cli.job.options import RunOptions

    for key, value in given.items():
        for each in value if isinstance(value, list) else [value]:
            _check_representable(
                "REQUESTS" if key == "requests" else f"--{_OPTION_NAMES.get(key, key).replace('_', '-')}",
                each,
            )
    if given["retry_errors"] and not given["resume"]:
        raise OptionError("--retry-errors: it goes with --resume")
    if given["verbose"] and given["quiet"]:
        raise OptionError("--verbose: it says more and --quiet less; leave out one")
    _name_the_job(given)
    replica = {key: given[key] for key in ReplicaOptions.__dataclass_fields__ if key in given}
    own = {key: given[key] for key in RunOptions.__dataclass_fields__ if key in given}
    return RunOptions(
        **own,
        replica=ReplicaOptions(**replica, adapter_roots=tuple(map(Path, given["adapters"] or ()))),
        columns=_columns(given),
        resume_command=from_anywhere(resume_command()),
        defaults=_row_defaults(given),
        fleet=FleetOptions(**{key: given[key] for key in FleetOptions.__dataclass_fields__}),
        arriving=ArrivalOptions(
            named=given["arrivals"],
            rate_per_s=given["rate"],
            burstiness=given["burstiness"],
            trace=None if given["arrival_trace"] is None else Path(given["arrival_trace"]),
            trace_adapters=given["trace_adapters"],
        ),
    )


def _check_representable(name: str, value: object) -> None:
    """Refuse what could not be meant, or not be written to report.json."""
    if value == "":
        raise OptionError(f"{name}: it is empty; leave it out, or check the shell variable it comes from")
    if isinstance(value, int) and abs(value) > _MAX_INTEGER:
        raise OptionError(f"{name}: the number is too large; the largest is {_MAX_INTEGER}")
    if name in ("--adapter", "--stop") and not _is_utf8(str(value)):
        raise OptionError(f"{name}: it is not valid UTF-8, which no request could say")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes of the command line that are no UTF-8 come as surrogates
        return False
    return True


def _name_the_job(given: dict[str, Any]) -> None:
    """Fill in the embedded sample where nothing is named, and the output folder."""
    from caraserve_cli.job.sample import find_sample

    requests, base = _sources(given), given["base"]
    if requests is None and base is None and not given["adapters"]:
        sample = find_sample()
        given.update(requests=str(sample.requests), base=str(sample.base), adapters=[sample.adapters])
        stem = "sample"
    elif requests is None or base is None:
        missing = "REQUESTS" if requests is None else "--base"
        raise OptionError(f"{missing}: missing; give both --base and REQUESTS, or neither for the sample")
    else:
        stem = "stdin" if requests == _STDIN else _stem(requests)
    given["out"] = Path(given["out"] or Path("caraserve-out", stem))


def _sources(given: dict[str, Any]) -> str | None:
    """Patterns become files; the first source, None if there is none, and apart from it the others."""
    from caraserve_cli.requests.dataset_path import check_dataset, is_dataset
    from caraserve_cli.requests.many_sources import expand
    from caraserve_cli.requests.source import check_exists

    sources = expand(given["requests"] or ())
    for source in sources:
        (check_dataset if is_dataset(source) else check_exists)(source)
    first = sources[0] if sources else None
    given.update(requests=first, more_requests=tuple(sources[1:]))
    return first


def _stem(source: str) -> str:
    """The file's name without the ends that tell its kind; `day.2026-01-31.jsonl.gz` keeps its date."""
    from caraserve_cli.requests.dataset_path import dataset_name, is_dataset

    if is_dataset(source):
        return dataset_name(source)
    requests = Path(source)
    if requests.suffix.lower() in (".gz", ".zst"):
        requests = requests.with_suffix("")
    return requests.stem


def _columns(given: Mapping[str, Any]) -> ColumnMap | None:
    from caraserve_cli.requests.columns import ColumnMap

    if not given["mapping"] and given["template"] is None:
        return None
    return ColumnMap.parse(given["mapping"] or (), given["template"])


def _row_defaults(given: Mapping[str, Any]) -> RowDefaults:
    """The run-wide defaults, checked by the very code that checks a row's own keys."""
    from caraserve_cli.core import Bounds, SamplingParams
    from caraserve_cli.requests.fields import Fields
    from caraserve_cli.requests.row import (
        BOUND_KEYS,
        OPENAI_SAMPLING,
        SAMPLING_KEYS,
        RowDefaults,
        parse_bounds,
        parse_sampling,
    )

    # --seed seeds the run: each row's own seed is drawn from it and the row's id.
    keys = [key for key in (*SAMPLING_KEYS, *BOUND_KEYS) if key != "seed"]
    fields = Fields({key: given[key] for key in keys if given[key] not in (None, [])})
    try:
        return RowDefaults(
            sampling=parse_sampling(fields, SamplingParams()),
            batch_sampling=parse_sampling(fields, OPENAI_SAMPLING),
            batch_max_tokens=given["max_tokens"],
            bounds=parse_bounds(fields, Bounds()),
            adapter=given["adapter"],
        )
    except RowError as error:
        key, _, rest = error.message.partition(" ")  # "max_tokens must be …", "stop_token_ids[0] must be …"
        raise OptionError(f"--{key.partition('[')[0].replace('_', '-')} {rest}") from None


def _answer(options: RunOptions, stop: StopRequest, *, quiet: bool, verbose: bool) -> int:
    from rich.console import Console

    from caraserve_cli.cli.closing_remarks import closing_remarks
    from caraserve_cli.cli.progress import RunProgress
    from caraserve_cli.cli.request_log import logged
    from caraserve_cli.report.terminal import render_summary

    with RunProgress(Console(stderr=True, quiet=quiet)) as progress, logged(progress.note, verbose):
        if _STDIN in options.sources and os.isatty(0):
            progress.note("reading requests from this terminal, a JSON object a line; Ctrl-D ends them")
        progress.stage(_LOADING)
        with import_pause():
            from caraserve_cli.job.run import Run

        age_s = command_age_s()
        result = Run(options, progress.update, progress.stage, progress.note, stop, age_s).execute()
    names = ("outputs.jsonl", "errors.jsonl", "report.json", "report.html", "trace.json", "run.json")
    written = [options.out / name for name in names]
    if result.exported is not None:
        written.insert(1, result.exported)
    render_summary(result.report, Console(quiet=quiet), written)
    for remark in [] if quiet else closing_remarks(options, result):
        typer.echo(remark, err=True)
    if result.exit_status == ExitStatus.INTERRUPTED:
        on_pipe = ", with the same standard input" if _STDIN in options.sources else ""
        typer.echo(f"Stopped. To go on: {resume_command()}{on_pipe}", err=True)
    return result.exit_status


def _check(options: RunOptions, stop: StopRequest) -> int:
    """The dry run: every rejection on stdout as a line of errors.jsonl, the count on stderr."""
    import orjson
    from rich.console import Console

    from caraserve_cli.cli.progress import RunProgress

    with RunProgress(Console(stderr=True)) as progress:
        progress.stage(_LOADING)
        with import_pause():
            from caraserve_cli.job.check import check

    stop.goal = "all was checked"
    num_rows = num_rejected = 0
    for rejected in check(options):
        stop.check()
        num_rows += 1
        if rejected is not None:
            num_rejected += 1
            typer.echo(orjson.dumps(rejected.as_row()))
    typer.echo(f"{num_rows - num_rejected} rows can be answered, {num_rejected} cannot.", err=True)
    return ExitStatus.ROWS_FAILED if num_rejected else ExitStatus.OK
