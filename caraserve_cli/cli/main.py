"""`caraserve`: the commands, and how their errors become one line and an exit status.

Nothing heavy is imported here: `caraserve --help` must not wait for torch. Each command imports what it
needs when it runs.
"""

from __future__ import annotations

import sys

import typer

from caraserve_cli.cli.run import run
from caraserve_cli.errors import CaraServeError, ExitStatus

app = typer.Typer(
    name="caraserve",
    help="Batch inference for one base LLM and many LoRA adapters of different ranks, with deadlines.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(run)


@app.callback(invoke_without_command=True)
def _common(
    version: bool = typer.Option(False, "--version", help="Print the version and exit.", is_eager=True),
) -> None:
    if version:
        from caraserve_cli import __version__

        typer.echo(f"caraserve {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line; what a user can cause ends in one line on stderr and an exit status."""
    try:
        app()
    except CaraServeError as error:
        print(f"caraserve: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        sys.exit(ExitStatus.INTERRUPTED)
    except BrokenPipeError:
        sys.exit(ExitStatus.FAILED)
