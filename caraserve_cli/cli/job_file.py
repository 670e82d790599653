"""Where the options of `caraserve run` come from, beside the command line: a job file, and the environment.

    caraserve run job.toml --limit 10       # keys are the options' names: base, adapters, max_tokens, …
    CARASERVE_RUN_MAX_TOKENS=10 caraserve run job.toml

The command line wins over the environment, that over the file, that over the defaults. Knows no option by
name but `requests`, the argument.
"""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from caraserve_cli.cli.plain_help import PlainCommand
from caraserve_cli.errors import OptionError

ENVIRONMENT_PREFIX = "CARASERVE_RUN"
_SUFFIX = ".toml"
_ARGUMENT = "requests"
# These say what to do now, not what the job is.
_NO_KEYS = ("help", "print_config")
_SOURCES = {"ENVIRONMENT": "environment", "DEFAULT_MAP": "job file", "COMMANDLINE": "command line"}


class JobCommand(PlainCommand):
    """A command whose first argument may be a job file.

    Raises:
        OptionError: a file or a variable says what no option means.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Called by typer, before values are looked up."""
        by_key = {_key_of(each): each for each in self.get_params(ctx) if _key_of(each) not in _NO_KEYS}
        ctx.auto_envvar_prefix = ENVIRONMENT_PREFIX
        _check_environment(by_key)
        values, _, _ = self.make_parser(ctx).parse_args(list(args))
        named = [each for each in values.get(_ARGUMENT) or () if each.lower().endswith(_SUFFIX)]
        if len(named) > 1:
            raise OptionError(f"REQUESTS: '{named[0]}' and '{named[1]}' are job files; give one")
        if named:
            ctx.default_map = _read_job(Path(named[0]), by_key)
            args = list(args)
            args.remove(named[0])
        rest: list[str] = super().parse_args(ctx, args)
        return rest


def config_text(context: Any, given: Mapping[str, Any]) -> str:
    """All options that have a value, as a job file; what is not the default says where it is from."""
    lines = []
    for parameter in context.command.get_params(context):
        key, value = _key_of(parameter), given.get(parameter.name)
        if key in _NO_KEYS or value is None or value == []:
            continue
        source = _SOURCES.get(context.get_parameter_source(parameter.name).name)
        lines.append(f"{key} = {_toml(value)}" + (f"  # {source}" if source else ""))
    return "\n".join(lines)


def _key_of(parameter: Any) -> str:
    """An option's name as a key of a file: --max-tokens is max_tokens."""
    if parameter.param_type_name == "argument":
        return str(parameter.name)
    longest: str = max(parameter.opts, key=len)
    return longest.removeprefix("--").replace("-", "_")


def _read_job(path: Path, by_key: Mapping[str, Any]) -> dict[str, Any]:
    """Values by parameter."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(f"job file '{path}' cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise OptionError(f"job file '{path}' is no TOML: {error}") from None
    values = {}
    for given_key, value in content.items():
        key = given_key.replace("-", "_")
        parameter = by_key.get(key)
        if parameter is None:
            raise OptionError(f"job file '{path}': '{given_key}' is no option of run{_hint(key, by_key)}")
        values[parameter.name] = _checked(value, parameter, f"job file '{path}': {given_key}")
    return values


def _checked(value: Any, parameter: Any, where: str) -> Any:
    """A value as the command line would have it; its range is checked where that of the command line is."""
    is_list = getattr(parameter, "multiple", False) or parameter.nargs == -1
    if isinstance(value, dict) and is_list and all(isinstance(each, str) for each in value.values()):
        value = [f"{key}={each}" for key, each in value.items()]  # [map]
    each_value = value if isinstance(value, list) else [value]
    if isinstance(value, list) and not is_list:
        raise OptionError(f"{where} must be one value, got a list")
    is_flag = getattr(parameter, "is_flag", False)
    for each in each_value:
        if isinstance(each, bool) is not is_flag or not isinstance(each, bool | int | float | str):
            kind = "true or false" if is_flag else "a string or a number" + (", or a list" if is_list else "")
            raise OptionError(f"{where} must be {kind}, got {json.dumps(each, default=str)}")
    if is_flag:
        return value
    return [str(each) for each in each_value] if is_list else str(value)


def _check_environment(by_key: Mapping[str, Any]) -> None:
    """A variable that no option reads would be passed over in silence."""
    known = {f"{ENVIRONMENT_PREFIX}_{each.name.upper()}": key for key, each in by_key.items()}
    for name in sorted(os.environ):
        if name.startswith(f"{ENVIRONMENT_PREFIX}_") and name not in known:
            raise OptionError(f"environment: '{name}' is read by no option of run{_hint(name, known)}")


def _hint(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else "; see caraserve run --help"


def _toml(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    # JSON's strings are TOML's, but for a character that JSON needs not escape.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
