"""The commands of `caraserve`, and how their errors become one line and an exit status.

Nothing heavy is imported here: `caraserve --help` must not wait for torch. Each command imports what it
needs when it runs.
"""

from __future__ import annotations

import signal
import sys
from typing import NoReturn

import typer

from caraserve_cli.cli.adapters import adapters
from caraserve_cli.cli.bench import bench
from caraserve_cli.cli.job_file import JobCommand
from caraserve_cli.cli.plain_help import PlainCommand, PlainGroup
from caraserve_cli.cli.profile import profile
from caraserve_cli.cli.report import report
from caraserve_cli.cli.run import run
from caraserve_cli.errors import CaraServeError, ExitStatus
from caraserve_cli.job.stop_request import StopRequest

# Whoever reads the output has seen enough, as in `caraserve run --help | head -1`: what a shell says of a
# program that the signal ended.
READER_GONE = 128 + signal.SIGPIPE

# Whose versions a report of a fault should name.
_LIBRARIES = ("torch", "triton", "transformers", "tokenizers", "safetensors", "datasets", "peft", "ray")

app = typer.Typer(
    cls=PlainGroup,
    name="caraserve",
    help="Batch inference for one base LLM and many LoRA adapters of different ranks, with deadlines.",
    pretty_exceptions_enable=False,
)
app.command(cls=JobCommand)(run)
app.command(cls=PlainCommand)(bench)
app.command(cls=PlainCommand)(profile)
app.command(cls=PlainCommand)(adapters)
app.command(cls=PlainCommand)(report)


@app.callback(invoke_without_command=True)
def _common(
    context: typer.Context,
    version: bool = typer.Option(
        False,
        "--version",
        help="Print the version and those of its libraries, and exit.",
        is_eager=True,
    ),
) -> None:
    if version:
        typer.echo(_versions())
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(ExitStatus.WRONG_OPTIONS)


def _versions() -> str:
    """Of what is installed, without importing it."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from caraserve_cli import __version__

    lines = [f"caraserve {__version__}", f"Python {platform.python_version()}"]
    for package in _LIBRARIES:
        try:
            lines.append(f"{package} {version(package)}")
        except PackageNotFoundError:  # an extra
            lines.append(f"{package} is not installed")
    return "\n".join(lines)


def run_command(stop: StopRequest) -> str | int | None:
    """Run the command line; what a user can cause ends in one line on stderr and an exit status.

    Args:
        stop: the wish to stop that commands look at.
    """
    try:
        exit_status: str | int | None = app(prog_name="caraserve", standalone_mode=False, obj=stop)
    except CaraServeError as error:
        _fail(f"{error}{_notes(error)}", error.exit_status)
    except typer.TyperException as error:  # an unknown option, a missing value and the like
        said = error.format_message().rstrip(".").replace(": Value error, ", ": ", 1)  # pydantic's words
        _fail(f"{said}{_notes(error)}; see {_command_path(error)} --help", ExitStatus.WRONG_OPTIONS)
    except SystemExit as ended:
        # typer and rich turn a closed pipe into exit status 1.
        exit_status = READER_GONE if isinstance(ended.__context__, BrokenPipeError) else ended.code
    except OSError as error:  # a full disk under stdout, a file that vanished
        where = f": '{error.filename}'" if error.filename else ""
        _fail(f"cannot go on: {error.strerror or error}{where}", ExitStatus.FAILED)
    return exit_status


def _command_path(error: typer.TyperException) -> str:
    """The command that an error is about. Of an option whose value is missing typer does not tell it."""
    context: typer.Context | None = getattr(error, "ctx", None)
    if context is not None:
        return context.command_path
    names = [each.callback.__name__ for each in app.registered_commands if each.callback]
    return " ".join(["caraserve", *(name for name in sys.argv[1:2] if name in names)])


def _notes(error: Exception) -> str:
    """What was added to an error on its way: the job file or variable that a value is from."""
    notes = getattr(error, "__notes__", ())
    return f" ({'; '.join(notes)})" if notes else ""


def _fail(message: str, exit_status: int) -> NoReturn:
    print(f"caraserve: {' '.join(message.splitlines())}", file=sys.stderr)  # noqa: T201
    sys.exit(exit_status)
