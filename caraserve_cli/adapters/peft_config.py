"""An adapter_config.json as PEFT means it: which modules it changes, at which rank, with which scale.

Matching follows PEFT to the letter (`check_target_module_exists`, `get_pattern_key`), since a module that
matches there and not here would be served with other weights. Knows no tensors.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from caraserve_cli.adapters.peft_fields import check_fields, shown
from caraserve_cli.core import LORA_MODULES
from caraserve_cli.errors import AdapterError

CONFIG_NAME = "adapter_config.json"
ALL_LINEAR = "all-linear"
# PEFT's own defaults, for configs that leave a field out.
_DEFAULT_RANK = 8
_DEFAULT_ALPHA = 8

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class PeftConfig:
    """What an adapter asks for. Module paths are the base's own, such as `model.layers.0.self_attn.q_proj`.

    `target_modules` and `exclude_modules` are either one regular expression or a set of names.
    """

    target_modules: str | frozenset[str]
    lora_rank: int = _DEFAULT_RANK
    lora_alpha: float = _DEFAULT_ALPHA
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    use_rslora: bool = False
    lora_bias: bool = False
    exclude_modules: str | frozenset[str] = frozenset()
    layers_to_transform: frozenset[int] = frozenset()
    layers_pattern: tuple[str, ...] = ()

    @classmethod
    def read(cls, adapter: str, folder: Path) -> PeftConfig:
        """The config of the adapter in `folder`.

        Raises:
            AdapterError: the file is missing, is no JSON object, or holds a field that cannot be honoured.
        """
        try:
            fields = json.loads((folder / CONFIG_NAME).read_bytes())
        except OSError as error:
            raise AdapterError(
                adapter, f"{CONFIG_NAME} cannot be read in {folder}: {error.strerror}"
            ) from error
        except (ValueError, RecursionError) as error:
            reason = f"{CONFIG_NAME} is not valid JSON ({error}); save the adapter again"
            raise AdapterError(adapter, reason) from error
        if not isinstance(fields, dict):
            raise AdapterError(adapter, f"{CONFIG_NAME} is not a JSON object; save the adapter again")
        return cls.parse(adapter, fields)

    @classmethod
    def parse(cls, adapter: str, fields: Mapping[str, object]) -> PeftConfig:
        """The config that the fields of an adapter_config.json describe.

        Raises:
            AdapterError: a field cannot be honoured or has a value of the wrong kind; it is named.
        """
        check_fields(adapter, fields)
        read = _FieldReader(adapter, fields)
        config = cls(
            target_modules=read.regex_or_names("target_modules"),
            lora_rank=read.rank("r", fields.get("r", _DEFAULT_RANK)),
            lora_alpha=read.number("lora_alpha", fields.get("lora_alpha", _DEFAULT_ALPHA)),
            rank_pattern={key: read.rank("rank_pattern", v) for key, v in read.patterns("rank_pattern")},
            alpha_pattern={key: read.number("alpha_pattern", v) for key, v in read.patterns("alpha_pattern")},
            use_rslora=read.flag("use_rslora"),
            lora_bias=read.flag("lora_bias"),
            exclude_modules=read.regex_or_names("exclude_modules"),
            layers_to_transform=read.layers("layers_to_transform"),
            layers_pattern=read.layers_pattern(),
        )
        config._check_targets(adapter)
        return config

    @property
    def identity(self) -> tuple[object, ...]:
        """Hashable, and equal for configs that mean the same whatever the order of their sets."""
        fields = (getattr(self, name) for name in self.__dataclass_fields__)
        return tuple(tuple(field.items()) if isinstance(field, Mapping) else field for field in fields)

    def selects(self, path: str) -> bool:
        """Whether the adapter changes the base's module at `path`."""
        if _matches(self.exclude_modules, path):
            return False
        if isinstance(self.target_modules, str):
            if self.target_modules.lower() == ALL_LINEAR:
                return path.endswith(LORA_MODULES)
            return re.fullmatch(self.target_modules, path) is not None
        if path in self.target_modules:
            return True  # PEFT lets a full path through whatever layers_to_transform says.
        return _matches(self.target_modules, path) and self._transforms_layer_of(path)

    def rank_of(self, path: str) -> int:
        """The LoRA rank that the config gives the module at `path`."""
        return _first_match(self.rank_pattern, path, self.lora_rank)

    def alpha_of(self, path: str) -> float:
        """The alpha that the config gives the module at `path`."""
        return _first_match(self.alpha_pattern, path, self.lora_alpha)

    def scale_of(self, path: str) -> float:
        """What the product B·A of the module at `path` is multiplied by: alpha/r, or alpha/√r with rsLoRA."""
        lora_rank, alpha = self.rank_of(path), self.alpha_of(path)
        return alpha / math.sqrt(lora_rank) if self.use_rslora else alpha / lora_rank

    def _transforms_layer_of(self, path: str) -> bool:
        if not self.layers_to_transform:
            return True
        if not self.layers_pattern:
            match = re.match(r".*?\.[^.]*\.(\d+)\.", path)
            return match is not None and int(match[1]) in self.layers_to_transform
        for pattern in self.layers_pattern:
            match = re.match(_layer_pattern(pattern), path)
            if match is not None:
                return int(match["idx"]) in self.layers_to_transform
        return False

    def _check_targets(self, adapter: str) -> None:
        if not self.target_modules:
            raise AdapterError(
                adapter, "target_modules is empty; write the modules that the adapter was trained on"
            )
        if isinstance(self.target_modules, str):
            for name in ("layers_to_transform", "layers_pattern"):
                if getattr(self, name):
                    raise AdapterError(
                        adapter, f"{name} cannot be used when target_modules is a string; PEFT refuses it too"
                    )
        if self.layers_pattern and not self.layers_to_transform:
            raise AdapterError(
                adapter, "layers_pattern is set without layers_to_transform; PEFT refuses it too"
            )


def _matches(names: str | frozenset[str], path: str) -> bool:
    """Whether `path` matches the regular expression in full, or is or ends with one of the names."""
    if isinstance(names, str):
        return re.fullmatch(names, path) is not None
    return path in names or path.endswith(tuple(f".{name}" for name in names))


def _first_match(patterns: Mapping[str, T], path: str, default: T) -> T:
    for pattern, value in patterns.items():
        if re.match(_module_pattern(pattern), path):
            return value
    return default


# What PEFT makes of the patterns that a config has; the group's name is PEFT's, too.


def _module_pattern(pattern: str) -> str:
    return rf"(.*\.)?({pattern})$"


def _layer_pattern(pattern: str) -> str:
    return rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\."


@dataclass(frozen=True, slots=True)
class _FieldReader:
    """Typed access to the fields; each method raises AdapterError naming the field."""

    adapter: str
    fields: Mapping[str, object]

    def rank(self, name: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self._wrong(name, value, "a rank, a whole number above zero")
        return value

    def number(self, name: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self._wrong(name, value, "a number")
        return float(value)

    def flag(self, name: str) -> bool:
        value = self.fields.get(name)
        if value is not None and not isinstance(value, bool):
            raise self._wrong(name, value, "true or false")
        return bool(value)

    def regex_or_names(self, name: str) -> str | frozenset[str]:
        value = self.fields.get(name)
        if isinstance(value, str):
            return self._regex(name, value)
        return frozenset(self._names(name, value))

    def patterns(self, name: str) -> Iterable[tuple[str, object]]:
        value = self.fields.get(name)
        if value is None:
            return ()
        if not isinstance(value, dict):
            raise self._wrong(name, value, "an object of module patterns")
        return tuple((self._regex(name, pattern, _module_pattern), entry) for pattern, entry in value.items())

    def layers(self, name: str) -> frozenset[int]:
        value = self.fields.get(name)
        layers = [value] if isinstance(value, int) else value
        if layers is None:
            return frozenset()
        if not isinstance(layers, list) or any(type(layer) is not int for layer in layers):
            raise self._wrong(name, value, "a layer index or a list of them")
        return frozenset(layers)

    def layers_pattern(self) -> tuple[str, ...]:
        value = self.fields.get("layers_pattern")
        patterns = [value] if isinstance(value, str) and value else value or ()
        names = self._names("layers_pattern", patterns)
        return tuple(self._regex("layers_pattern", name, _layer_pattern) for name in names)

    def _names(self, name: str, value: object) -> tuple[str, ...]:
        if value is None:
            return ()
        if not isinstance(value, list | tuple) or any(
            not isinstance(entry, str) or not entry for entry in value
        ):
            raise self._wrong(name, value, "a string or a list of strings")
        return tuple(value)

    def _regex(self, name: str, pattern: str, wrapped: Callable[[str], str] = str) -> str:
        """A pattern that is one both alone and as PEFT has it, `wrapped`: flags stand first only."""
        try:
            re.compile(pattern)
            re.compile(wrapped(pattern))
        except re.error as error:
            reason = f"{name} holds {pattern!r}, which is not a regular expression: {error}"
            raise AdapterError(self.adapter, reason) from error
        return pattern

    def _wrong(self, name: str, value: object, expected: str) -> AdapterError:
        return AdapterError(self.adapter, f"{name} is {shown(value)}; it must be {expected}")
