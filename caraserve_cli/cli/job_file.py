"""Where the options of `caraserve run` come from, beside the command line: a job file, and the environment.

    caraserve run job.toml --limit 10       # keys are the options' names: base, adapters, max_tokens, …
    CARASERVE_RUN_MAX_TOKENS=10 caraserve run job.toml

The command line wins over the environment, that over the file, that over the defaults. An empty variable is
none. Knows no option by name but those that the constants here list.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import typer

from caraserve_cli.cli.plain_help import PlainCommand
from caraserve_cli.errors import CaraServeError, OptionError

_PROGRAM_PREFIX = "CARASERVE_"
_PREFIX = f"{_PROGRAM_PREFIX}RUN_"
# Those of CI and of `caraserve bench`.
_OTHER_VARIABLES = ("CARASERVE_BROWSER", "CARASERVE_COMMIT")
_SUFFIX = ".toml"
_ARGUMENT = "requests"
# These say what to do now, not what the job is.
_NO_KEYS = ("help", "print_config")
# These may stand in a job file, but are about one call: a job that is written down has none of them.
_OF_ONE_CALL = ("resume", "retry_errors", "dry_run", "quiet", "verbose")
# A variable of these is one text, whose spaces are its own; other lists have spaces between their values.
_TEXTS = ("stop",)
_GIVEN = "caraserve.given"
_MAX_EXCERPT_CHARS = 60


class _Given(NamedTuple):
    """A value that is not from the command line."""

    value: Any
    source: str
    where: str
    """The value and where it stands, as messages say it."""


class JobCommand(PlainCommand):
    """A command of whose arguments one may be a job file.

    Raises:
        OptionError: a file or a variable says what no option means.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Called by typer, before values are looked up."""
        values, _, _ = self.make_parser(ctx).parse_args(list(args))
        if not values.get("help"):  # which is where a refusal sends its reader
            args = self._read_sources(ctx, list(args), values.get(_ARGUMENT) or ())
        try:
            rest: list[str] = super().parse_args(ctx, args)
        except typer.BadParameter as error:
            origin = error.param and _origin(ctx, error.param)
            if origin:
                error.add_note(origin.where)
            raise
        return rest

    def _read_sources(self, ctx: Any, args: list[str], requests: Iterable[str]) -> list[str]:
        """Have typer find what file and variables say; return the arguments without the file."""
        by_key = _options_by_key(ctx)
        given = _read_environment(by_key)
        named = [each for each in requests if each.lower().endswith(_SUFFIX)]
        if len(named) > 1:
            raise OptionError(f"REQUESTS: '{named[0]}' and '{named[1]}' are job files; give one")
        if named:
            given = {**_read_job(Path(named[0]), by_key), **given}
            args.remove(named[0])
        ctx.default_map = {name: each.value for name, each in given.items()}
        ctx.meta[_GIVEN] = given
        return args

    def invoke(self, ctx: Any) -> Any:
        """Called by typer. An error of the command is told where the values that it names are from."""
        if not ctx.params.get("quiet"):
            for warning in _stray_variables(ctx):
                typer.echo(warning, err=True)
        try:
            return super().invoke(ctx)
        except CaraServeError as error:
            origin = _named(ctx, str(error))
            if origin:
                error.add_note(origin.where)
            raise


def config_text(context: Any, values: Mapping[str, Any]) -> str:
    """The options as a job file, but for those about one call; what is not the default says where it is from.

    Options without a value are comments.
    """
    lines = []
    for key, parameter in _options_by_key(context).items():
        value = values[parameter.name]
        if key in _OF_ONE_CALL:
            continue
        if value is None or value == []:
            lines.append(f"# {key}: not set")
            continue
        origin = _origin(context, parameter)
        is_typed = context.get_parameter_source(parameter.name).name == "COMMANDLINE"
        source = "command line" if is_typed else origin.source if origin else None
        lines.append(f"{key} = {_toml(value)}" + (f"  # {source}" if source else ""))
    return "\n".join(lines)


def _stray_variables(context: Any) -> list[str]:
    """A warning for each variable of the environment that is called as if it were ours, and is not read."""
    known = {key.upper(): _variable_of(key) for key in _options_by_key(context)}
    known |= {each.removeprefix(_PROGRAM_PREFIX): each for each in _OTHER_VARIABLES}
    warnings = []
    for name in sorted(os.environ):
        # Those that begin as run's do were looked at when they were read.
        if name.startswith(_PROGRAM_PREFIX) and not name.startswith(_PREFIX) and name not in _OTHER_VARIABLES:
            close = difflib.get_close_matches(name.removeprefix(_PROGRAM_PREFIX), known, n=1)
            hint = f"did you mean '{known[close[0]]}'?" if close else f"variables of run begin with {_PREFIX}"
            warnings.append(f"caraserve: warning: the variable '{name}' is not read; {hint}")
    return warnings


def _origin(context: Any, parameter: Any) -> _Given | None:
    """Where an option's value is from; None for the command line and the default."""
    if context.get_parameter_source(parameter.name).name != "DEFAULT_MAP":
        return None
    origin: _Given = context.meta[_GIVEN][parameter.name]
    return origin


def _named(context: Any, message: str) -> _Given | None:
    """Where the value is from that a message is about: it begins with the option's name, or has the value in
    quotes."""
    begun = re.match(r"--[a-z-]+|[A-Z]+\b", message)
    for parameter in _options_by_key(context).values():
        origin = _origin(context, parameter)
        if origin is None:
            continue
        names = [parameter.name.upper()] if parameter.param_type_name == "argument" else parameter.opts
        values = origin.value if isinstance(origin.value, list) else [origin.value]
        if begun.group() in names if begun else any(f"'{each}'" in message for each in values):
            return origin
    return None


def _options_by_key(context: Any) -> dict[str, Any]:
    """The parameters that may come from elsewhere than the command line."""
    parameters = context.command.get_params(context)
    return {_key_of(each): each for each in parameters if _key_of(each) not in _NO_KEYS}


def _key_of(parameter: Any) -> str:
    """An option's name as a key of a file: --max-tokens is max_tokens."""
    if parameter.param_type_name == "argument":
        return str(parameter.name)
    longest: str = max(parameter.opts, key=len)
    return longest.removeprefix("--").replace("-", "_")


def _variable_of(key: str) -> str:
    return _PREFIX + key.upper()


def _is_list(parameter: Any) -> bool:
    return bool(getattr(parameter, "multiple", False) or parameter.nargs == -1)


def _read_job(path: Path, by_key: Mapping[str, Any]) -> dict[str, _Given]:
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
        checked = _checked(value, parameter, f"job file '{path}': {given_key}")
        where = f"{given_key} = {_excerpt(value)} in job file '{path}'"
        values[parameter.name] = _Given(checked, "job file", where)
    return values


def _checked(value: Any, parameter: Any, where: str) -> Any:
    """A value as the command line would have it; its range is checked where that of the command line is."""
    is_list = _is_list(parameter)
    if isinstance(value, dict) and is_list and all(isinstance(each, str) for each in value.values()):
        value = [f"{key}={each}" for key, each in value.items()]  # [map]
    each_value = value if isinstance(value, list) else [value]
    if isinstance(value, list) and not is_list:
        raise OptionError(f"{where} must be one value, got {_excerpt(value)}")
    is_flag = getattr(parameter, "is_flag", False)
    for each in each_value:
        if isinstance(each, bool) is not is_flag or not isinstance(each, bool | int | float | str):
            kind = "true or false" if is_flag else "a string or a number" + (", or a list" if is_list else "")
            raise OptionError(f"{where} must be {kind}, got {_excerpt(each)}")
    if is_flag:
        return value
    return [str(each) for each in each_value] if is_list else str(value)


def _read_environment(by_key: Mapping[str, Any]) -> dict[str, _Given]:
    """Values by parameter.

    Raises:
        OptionError: no option reads a variable, which would be passed over in silence, or it is no list.
    """
    known = {_variable_of(key): key for key in by_key}
    values = {}
    for name, text in sorted(os.environ.items()):
        if not name.startswith(_PREFIX):
            continue
        if name not in known:
            raise OptionError(f"environment: '{name}' is read by no option of run{_hint(name, known)}")
        parameter = by_key[known[name]]
        if text.strip() or (text and parameter.name in _TEXTS):
            value = _listed(name, text, parameter) if _is_list(parameter) else text
            values[parameter.name] = _Given(value, "environment", f"{name}={_excerpt(text)}")
    return values


def _listed(name: str, text: str, parameter: Any) -> Any:
    """The values of a variable that is a list."""
    if not text.lstrip().startswith("["):
        return [text] if parameter.name in _TEXTS else text.split()
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise OptionError(
            f"{name}: a value that begins with [ is a JSON list; if it is a text, write {_excerpt([text])}"
        ) from None
    return _checked(value, parameter, name)


def _hint(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else "; see caraserve run --help"


def _excerpt(value: object) -> str:
    """A value as a message shows it, on one line and shortened."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _MAX_EXCERPT_CHARS else text[: _MAX_EXCERPT_CHARS - 1] + "…"


def _toml(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, float):
        return repr(value)  # which has TOML's inf
    if isinstance(value, bool | int):
        return json.dumps(value)
    # JSON's strings are TOML's, but for a character that JSON needs not escape.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
