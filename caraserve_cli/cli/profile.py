"""`caraserve profile`: parse, measure, print, store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from caraserve_cli.cli import run_options as o
from caraserve_cli.cli.bench_files import check_writable
from caraserve_cli.errors import OutputError
from caraserve_cli.fleet.options import ReplicaOptions
from caraserve_cli.import_pause import import_pause
from caraserve_cli.job.stop_request import StopRequest

_REPLICA = ReplicaOptions(base="")  # for its defaults


def profile(
    context: typer.Context,
    base: Annotated[
        str,
        typer.Option(
            help="Base model: a checkpoint folder, a hub id, or a short name such as llama2-7b.",
            show_default=False,
        ),
    ],
    weights: o.Weights = _REPLICA.weights,
    device: o.Device = _REPLICA.device,
    dtype: o.Dtype = _REPLICA.dtype,
    max_running: o.MaxRunning = _REPLICA.max_running,
    gpu_memory: o.GpuMemory = None,
    kv_memory: o.KvMemory = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the profile there too.")
    ] = None,
) -> None:
    """Measure this machine with a base: link, steps, LoRA in steps and on CPU workers. Fits the models by
    which steps are predicted and cold starts decided, prints them with the break-even chart, and stores them
    for runs.
    """
    if json_file is not None:
        check_writable(json_file, "--json")
    options = ReplicaOptions(
        base=base,
        weights=weights,
        device=device,
        dtype=dtype,
        max_running=max_running,
        gpu_memory=gpu_memory,
        kv_memory=kv_memory,
        cold_start="stream",  # no strategy that would ask for the profile that is being made
        cpu_workers=0,
    )
    _measure(options, json_file, context.obj)


def _measure(options: ReplicaOptions, json_file: Path | None, stop: StopRequest) -> None:
    from rich.console import Console

    with import_pause():
        from caraserve_cli.bench.facts import code_commit
        from caraserve_cli.fleet.cold_start import this_machine
        from caraserve_cli.fleet.profiling import measure_profile
        from caraserve_cli.perf.profile_json import to_json
        from caraserve_cli.perf.profile_store import ProfileStore, default_folder
        from caraserve_cli.report.profile_terminal import render_profile

    stop.goal = "all was measured"

    def tell(part: str) -> None:
        """A line a part on stderr, so that a long measurement is seen to move."""
        stop.check()
        typer.echo(f"measuring: {part}", err=True)

    def tell_left_out(what: str) -> None:
        typer.echo(f"left out: {what}", err=True)

    measured = measure_profile(options, code_commit(), tell, tell_left_out)
    if json_file is not None:
        _write(json_file, to_json(measured))
    path = ProfileStore(default_folder()).save(this_machine(measured.measured_on.device), measured)
    Console(soft_wrap=True).print(render_profile(measured))
    typer.echo(f"\nStored: {path}")


def _write(json_file: Path, content: bytes) -> None:
    try:
        json_file.write_bytes(content)
    except OSError as error:
        raise OutputError(f"--json: '{json_file}' cannot be written: {error.strerror}") from error
