"""Rows of any columns -> requests in our own form: which column is which key, and a prompt by a template.

Knows columns and keys; does not know where rows come from, nor whether their values are right.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from caraserve_cli.errors import InputError, OptionError
from caraserve_cli.requests.row import PROMPT_KEYS, REQUEST_KEYS

if TYPE_CHECKING:
    import jinja2

_INTEGER_KEYS = ("max_tokens", "top_k", "seed", "logprobs")
# Keys whose value is a text, which stands in a text as it is; that of any other is JSON there.
_TEXT_KEYS = ("id", "prompt", "adapter", "stop")


class ColumnError(Exception):
    """One row lacks a column, or the template refuses it; the message is for its error row."""


@dataclass(frozen=True)
class ColumnMap:
    """What makes a request of a row's columns. Columns that nothing names are ignored.

    Attributes:
        columns: the column of a request's key; keys that are not in it have the column of their own name. If
            one of the prompt's forms is mapped, or there is a template, the others are left out.
        template: a Jinja template of the prompt, whose variables are columns. Null has no text: where it
            would be filled in, the row is refused.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    template: str | None = None

    @classmethod
    def parse(cls, mappings: Sequence[str], template: str | None) -> ColumnMap:
        """Of `--map key=column,key=column` (repeatable) and `--template`, a file or the template itself.

        Raises:
            OptionError: they are wrong; the message names the option.
        """
        columns: dict[str, str] = {}
        for each in ",".join(mappings).split(",") if mappings else ():
            key, is_pair, column = (part.strip() for part in each.partition("="))
            if not is_pair or not key or not column:
                raise OptionError(
                    f"--map: '{each}' is no KEY=COLUMN, as in --map prompt=question,adapter=team"
                )
            if key not in REQUEST_KEYS:
                close = difflib.get_close_matches(key, REQUEST_KEYS, n=1)
                hint = f"did you mean '{close[0]}'?" if close else f"keys are {', '.join(REQUEST_KEYS)}"
                raise OptionError(f"--map: '{key}' is no key of a request; {hint}")
            if key in columns:
                raise OptionError(f"--map: '{key}' is mapped twice, to {columns[key]} and to {column}")
            columns[key] = column
        if template is not None and any(key in columns for key in PROMPT_KEYS):
            raise OptionError(
                "--template: it makes the prompt, and --map names a column for it; leave out one"
            )
        mapped = cls(columns, None if template is None else _template_text(template))
        _ = mapped._compiled  # a wrong one is refused now
        return mapped

    def used_columns(self, available: Collection[str], source: str) -> list[str]:
        """Those of the available columns that requests are made of.

        Raises:
            InputError: one that is named is not there, or none is a prompt.
        """
        names = ", ".join(available)
        wanted = [*self.columns.values(), *self._template_columns]
        missing = next((column for column in wanted if column not in available), None)
        if missing is not None:
            option = "--map" if missing in self.columns.values() else "--template"
            raise InputError(f"{option}: {source} has no column '{missing}'; its columns are {names}")
        pairs = self._pairs(available)
        if self.template is None and not any(key in PROMPT_KEYS for key, _ in pairs):
            raise InputError(
                f"{source} has none of the columns {', '.join(PROMPT_KEYS)} (it has {names}); "
                "name one with --map prompt=COLUMN, or make the prompt with --template"
            )
        used = {column for _, column in pairs} | set(self._template_columns)
        return [column for column in available if column in used]

    def has_any(self, keys: Collection[str], available: Collection[str]) -> bool:
        """Whether rows of these columns can have one of the keys."""
        return any(key in keys for key, _ in self._pairs(available))

    def id_column(self, available: Collection[str]) -> str | None:
        """The column of ids, None where rows have none."""
        column = self.columns.get("id", "id")
        return column if column in available else None

    def request_of(self, row: Mapping[str, object], *, is_text: bool = False) -> dict[str, object]:
        """The request that a row of these columns is; a column without a value gives its key no value.

        Args:
            row: its columns.
            is_text: whether all its values are texts, as those of a CSV file: numbers, lists and objects are
                read from them.

        Raises:
            ColumnError: the row lacks a column that is named, or holds bytes that are no text.
        """
        row = {column: _as_text(column, value) for column, value in row.items()}
        missing = next((column for column in self.columns.values() if column not in row), None)
        if missing is not None:
            raise ColumnError(f"it has no column '{missing}', which --map names")
        read = _value_of_text if is_text else value_of
        request = {key: read(key, row[column]) for key, column in self._pairs(row)}
        if self._compiled is not None:
            request["prompt"] = self._rendered(row)
        return {key: value for key, value in request.items() if value is not None}

    def _pairs(self, available: Collection[str]) -> list[tuple[str, str]]:
        """Keys and their columns."""
        has_prompt = self.template is not None or any(key in self.columns for key in PROMPT_KEYS)
        pairs = []
        for key in REQUEST_KEYS:
            if key in self.columns:
                pairs.append((key, self.columns[key]))
            elif key in available and not (has_prompt and key in PROMPT_KEYS):
                pairs.append((key, key))
        return pairs

    def _rendered(self, row: Mapping[str, object]) -> str:
        assert self._compiled is not None
        try:
            return self._compiled.render(row)
        except Exception as error:  # a template can raise whatever its operators do
            raise ColumnError(f"--template cannot be filled in: {' '.join(str(error).split())}") from None

    @cached_property
    def _compiled(self) -> jinja2.Template | None:
        if self.template is None:
            return None
        from jinja2 import StrictUndefined, TemplateSyntaxError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(
            undefined=StrictUndefined, keep_trailing_newline=True, finalize=_filled_in
        )
        try:
            return environment.from_string(self.template)
        except TemplateSyntaxError as error:
            raise OptionError(f"--template: line {error.lineno}: {error.message}") from None

    @cached_property
    def _template_columns(self) -> tuple[str, ...]:
        if self._compiled is None or self.template is None:
            return ()
        from jinja2 import meta

        environment = self._compiled.environment
        names = meta.find_undeclared_variables(environment.parse(self.template))
        return tuple(sorted(names - environment.globals.keys()))


def _template_text(template: str) -> str:
    path = Path(template)
    try:
        is_file = path.is_file()
    except OSError:  # a long template is no name of a file
        is_file = False
    if is_file:
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise OptionError(f"--template: '{template}' cannot be read: {error}") from None
    if "{{" not in template and "{%" not in template:
        raise OptionError(
            f"--template: '{template}' is neither a file nor a template, which has {{{{ column }}}}"
        )
    return template


def _filled_in(value: object) -> object:
    if value is None:
        raise ValueError("a column in it is null; {{ column or '' }} leaves it empty")
    return value


def _as_text(column: str, value: object) -> object:
    """Some writers of Parquet have texts as bytes."""
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise ColumnError(f"column '{column}' holds bytes that are no UTF-8") from None


def _value_of_text(key: str, value: object) -> object:
    if key in _TEXT_KEYS or not isinstance(value, str):
        return value
    try:
        return value_of(key, orjson.loads(value.lower() if value in ("True", "False") else value))
    except orjson.JSONDecodeError:
        return value  # refused where the key is checked


def value_of(key: str, value: object) -> object:
    """A column's value as that of a key. Tables have one type a column: ids may be numbers, and whole numbers
    beside gaps come as 5.0."""
    if key == "id" and type(value) is int:
        return str(value)
    if key in _INTEGER_KEYS and isinstance(value, float) and value.is_integer():
        return int(value)
    return _without_gaps(value)


def _without_gaps(value: object) -> object:
    """Arrow gives every object of a column all keys that one of them has: null is a key that is not there."""
    if isinstance(value, Mapping):
        return {key: _without_gaps(part) for key, part in value.items() if part is not None}
    return [_without_gaps(part) for part in value] if isinstance(value, list) else value
