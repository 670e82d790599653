"""`caraserve`: the commands, and how their errors become one line and an exit status.

Nothing heavy is imported here: `caraserve --help` must not wait for torch. Each command imports what it
needs when it runs.
"""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from caraserve_cli.cli.bench import bench
from caraserve_cli.cli.run import run
from caraserve_cli.errors import CaraServeError, ExitStatus


class _Overview(TyperGroup):
    """The list of commands, in plain text: rich's help renderer alone takes 100 ms to import."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**{**attributes, "rich_markup_mode": None})


app = typer.Typer(
    cls=_Overview,
    name="caraserve",
    help="Batch inference for one base LLM and many LoRA adapters of different ranks, with deadlines.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(run)
app.command()(bench)


@app.callback(invoke_without_command=True)
def _common(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and exit.", is_eager=True),
) -> None:
    if version:
        from caraserve_cli import __version__

        typer.echo(f"caraserve {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(ExitStatus.WRONG_OPTIONS)


def main() -> None:
    """Run the command line; what a user can cause ends in one line on stderr and an exit status."""
    try:
        exit_status = app(prog_name="caraserve", standalone_mode=False)
    except CaraServeError as error:
        _fail(str(error), error.exit_status)
    except typer.TyperException as error:  # an unknown option, a missing value and the like
        context: typer.Context | None = getattr(error, "ctx", None)
        command = context.command_path if context else "caraserve"
        _fail(f"{error.format_message().rstrip('.')}; see {command} --help", ExitStatus.WRONG_OPTIONS)
    except KeyboardInterrupt:
        exit_status = ExitStatus.INTERRUPTED
    except OSError as error:  # a full disk under stdout, a file that vanished
        where = f": '{error.filename}'" if error.filename else ""
        _fail(f"cannot go on: {error.strerror or error}{where}", ExitStatus.FAILED)
    sys.exit(exit_status)


def _fail(message: str, exit_status: int) -> NoReturn:
    print(f"caraserve: {' '.join(message.splitlines())}", file=sys.stderr)  # noqa: T201
    sys.exit(exit_status)
