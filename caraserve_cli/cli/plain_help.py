"""`--help` in plain text, the options of a command under the headings of their panels.

Not rich's boxes: their columns cut long option names at 80 characters, and its help renderer alone takes
100 ms to import.
"""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup

_OTHER_OPTIONS = "Options"


class PlainGroup(TyperGroup):
    """The list of commands."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**{**attributes, "rich_markup_mode": None})


class PlainCommand(TyperCommand):
    """One command."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**{**attributes, "rich_markup_mode": None})

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write all parameters, those without a panel first. typer calls it; its own names no panels."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], _OTHER_OPTIONS: []}
        for parameter in self.get_params(ctx):
            # The same prefix before every name: told once, in the README.
            vars(parameter)["show_envvar"] = False
            record = parameter.get_help_record(ctx)
            if record is not None:
                is_argument = parameter.param_type_name == "argument"
                panel = getattr(parameter, "rich_help_panel", None) or _OTHER_OPTIONS
                sections.setdefault("Arguments" if is_argument else panel, []).append(record)
        for heading, records in sections.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)
