"""The command line that goes on with a run: what was typed, with --resume, as a shell takes it again.

Knows no option but --resume; variables count as typed.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_COMMAND, _RESUME = "run", "--resume"
_VARIABLES = "CARASERVE_RUN_"


def resume_command(
    arguments: Sequence[str] | None = None, environment: Mapping[str, str] | None = None
) -> str:
    """One line, for the folder in which it was typed.

    Args:
        arguments: of the process, the program's name first; those of this one if not given.
        environment: the variables beside them; those of this process if not given.
    """
    program, *rest = sys.argv if arguments is None else arguments
    variables = os.environ if environment is None else environment
    if _RESUME not in rest:
        rest.insert(rest.index(_COMMAND) + 1, _RESUME)  # not at the end, where it may be behind a `--`
    is_module = Path(program).name == "__main__.py"
    start = [sys.executable, "-m", "caraserve_cli"] if is_module else [program]
    set_here = [
        f"{name}={_quoted(value)}"
        for name, value in sorted(variables.items())
        if name.startswith(_VARIABLES) and value
    ]
    return " ".join([*set_here, *map(_quoted, [*start, *rest])])


def from_anywhere(command: str) -> str:
    """A command of the current folder, for whatever folder it is typed in."""
    return f"cd {_quoted(os.getcwd())} && {command}"


def _quoted(text: str) -> str:
    """A shell's word, printable whatever is in it: a line break or a byte that is no UTF-8 needs the $'…' of
    bash and zsh."""
    if text.isprintable():
        return shlex.quote(text)
    return f"$'{''.join(map(_escaped, text))}'"


def _escaped(character: str) -> str:
    if character in ("\\", "'"):
        return f"\\{character}"
    if character.isprintable():
        return character
    return "".join(f"\\{byte:03o}" for byte in character.encode(errors="surrogateescape"))
