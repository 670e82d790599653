"""`caraserve adapters`: list what is below folders, print, exit status."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from caraserve_cli.errors import ExitStatus, InputError, OptionError

if TYPE_CHECKING:
    from caraserve_cli.adapters.summary import AdapterSummary
    from caraserve_cli.core import BaseShape

SortKey = Literal["name", "rank", "alpha", "size", "problem"]

# What cannot be told of a damaged adapter stands last.
_SORT_KEYS: dict[SortKey, Callable[[AdapterSummary], Any]] = {
    "name": lambda summary: (),
    "rank": lambda summary: tuple(-lora_rank for lora_rank in reversed(summary.lora_ranks or (0, 0))),
    "alpha": lambda summary: -(summary.lora_alphas or (0.0, summary.lora_alpha or 0.0))[1],
    "size": lambda summary: -summary.file_bytes,
    "problem": lambda summary: (summary.problem is None, summary.problem or ""),
}


def adapters(
    context: typer.Context,
    folders: Annotated[
        list[str],
        typer.Argument(
            metavar="DIR",
            help="Folders of PEFT adapters; each is named by its path below the folder.",
            show_default=False,
        ),
    ],
    base: Annotated[
        str | None,
        typer.Option(
            help="Base model that they should fit: a checkpoint folder, a hub id, or a short name; its "
            "weights are not needed.",
        ),
    ] = None,
    search: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="Only those with this in name, modules, dtype or problem (repeatable: all of them).",
            show_default=False,
        ),
    ] = None,
    sort: Annotated[
        SortKey, typer.Option(help="By name, or the largest first; problem: those that are refused first.")
    ] = "name",
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array.")] = False,
) -> None:
    """List adapters: ranks, alpha, modules, dtype, size, and whether they fit a base, or why not.

    Reads configs and headers only; NaN and infinite weights are found when an adapter is loaded.

    Exit status: 0 all listed adapters can be served, 3 some are refused.
    """
    from caraserve_cli.adapters.library import AdapterLibrary
    from caraserve_cli.adapters.summary import AdapterInspector

    context.obj.goal = "all adapters were listed"
    if "" in folders:
        raise OptionError("DIR: it is empty; check the shell variable it comes from")
    try:
        library = AdapterLibrary.scan([Path(folder) for folder in folders])
    except OptionError as error:
        raise OptionError(f"DIR: {str(error).removeprefix('--adapters: ')}") from error
    if not len(library):
        raise InputError(
            f"no adapters below {', '.join(folders)}: an adapter is a folder with an adapter_config.json"
        )
    inspector = AdapterInspector(None if base is None else _shape_of(base))
    found = [inspector.inspect(name, library.path(name)) for name in library.names]
    listed = sorted((one for one in found if _matches(one, search or ())), key=_SORT_KEYS[sort])
    _print(listed, num_found=len(found), with_base=base is not None, as_json=as_json)
    refused = any(summary.problem is not None for summary in listed)
    raise typer.Exit(ExitStatus.ROWS_FAILED if refused else ExitStatus.OK)


def _shape_of(base: str) -> BaseShape:
    from caraserve_cli.model.resolve import resolve_base

    return resolve_base(base, weights="random").config.shape


def _matches(summary: AdapterSummary, wanted: Sequence[str]) -> bool:
    parts = (summary.name, *summary.modules, *summary.dtypes, summary.problem or "")
    text = "\n".join(parts).lower()
    return all(each.lower() in text for each in wanted)


def _print(listed: Sequence[AdapterSummary], *, num_found: int, with_base: bool, as_json: bool) -> None:
    from caraserve_cli.cli.adapters_table import as_json_array, render_table

    if as_json:
        typer.echo(as_json_array(listed))
        return
    for line in render_table(listed, with_base=with_base):
        typer.echo(line)
    num_refused = sum(summary.problem is not None for summary in listed)
    shown = f"{len(listed):,}" if len(listed) == num_found else f"{len(listed):,} of {num_found:,}"
    plural = "" if num_found == 1 else "s"
    typer.echo(f"{shown} adapter{plural}, {num_refused:,} refused.", err=True)
