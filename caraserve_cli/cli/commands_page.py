"""COMMANDS.md: the help of `caraserve` and of each of its commands, as they print it.

    python -m caraserve_cli.cli.commands_page      # writes it again

Not `typer utils docs`: that has one list of options a command, and it is their headings that say of
`--adapter` and its like that they are defaults for rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from caraserve_cli.cli.app import app

PAGE = Path(__file__).with_name("COMMANDS.md")
REMAKE = "python -m caraserve_cli.cli.commands_page"

_WIDTH = 78  # what it has on a terminal of 80 columns and more
_TOP = f"""# The commands of `caraserve`

Made from the help texts by `{REMAKE}`.
A test says when that is due.
"""


def commands_page() -> str:
    """What the page has to say now."""
    return _TOP + "".join(f"\n## `{name} --help`\n\n```text\n{text}\n```\n" for name, text in _help_texts())


def _help_texts() -> Iterator[tuple[str, str]]:
    """Commands as they are typed, and what their help prints."""
    group: Any = typer.main.get_command(app)
    top = typer.Context(group, info_name="caraserve", terminal_width=_WIDTH)
    yield "caraserve", group.get_help(top)
    for name in group.list_commands(top):
        command = group.get_command(top, name)
        context = typer.Context(command, info_name=name, parent=top, terminal_width=_WIDTH)
        yield context.command_path, command.get_help(context)


if __name__ == "__main__":
    PAGE.write_text(commands_page(), encoding="utf-8")
