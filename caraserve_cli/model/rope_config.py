"""The rotary position settings of a base model: which kind, with which numbers.

Knows the two spellings (`rope_theta` with `rope_scaling`, and `rope_parameters`) and refuses what the kind
does not use. Does not compute frequencies; `rope` does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from caraserve_cli.errors import BaseModelError

RopeValue: TypeAlias = str | float | int | bool | list[float]

_ORIGINAL_CONTEXT = "original_max_position_embeddings"
# For every kind: (the numbers it needs, those it may have).
_KINDS: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "default": (frozenset(), frozenset()),
    "linear": (frozenset(("factor",)), frozenset()),
    "dynamic": (frozenset(("factor",)), frozenset()),
    "yarn": (
        frozenset(("factor",)),
        frozenset(
            (
                _ORIGINAL_CONTEXT,
                "attention_factor",
                "beta_fast",
                "beta_slow",
                "mscale",
                "mscale_all_dim",
                "truncate",
            )
        ),
    ),
    "llama3": (
        frozenset(("factor", "low_freq_factor", "high_freq_factor")),
        frozenset((_ORIGINAL_CONTEXT,)),
    ),
    "longrope": (
        frozenset(("short_factor", "long_factor")),
        frozenset((_ORIGINAL_CONTEXT, "factor", "attention_factor")),
    ),
}
# `finetuned` records how the checkpoint was made and is read by no implementation of these kinds.
_ALWAYS_ALLOWED = frozenset(("rope_type", "type", "rope_theta", "partial_rotary_factor", "finetuned"))


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """One kind of rotary position embedding, with its numbers.

    Attributes:
        kind: default, linear, dynamic, yarn, llama3 or longrope.
        parameters: the settings in transformers' own form (`rope_parameters`).
        max_position_embeddings: as in config.json, in tokens; which context that is depends on the kind.
    """

    kind: str
    parameters: Mapping[str, RopeValue]
    head_dim: int
    max_position_embeddings: int

    @classmethod
    def interpreted(
        cls, parameters: Mapping[str, RopeValue], head_dim: int, max_position_embeddings: int, where: str
    ) -> RopeConfig:
        """Makes it of parameters that `check_rope_settings` accepted and transformers completed.

        Raises:
            BaseModelError: the factors of longrope do not fit the heads.
        """
        for key in ("short_factor", "long_factor"):
            factors = parameters.get(key)
            if isinstance(factors, list) and len(factors) != head_dim // 2:
                raise BaseModelError(
                    f"{where}: rope '{key}' has {len(factors)} numbers, heads of {head_dim} need "
                    f"{head_dim // 2}; correct it"
                )
        return cls(
            kind=str(parameters["rope_type"]),
            parameters=dict(parameters),
            head_dim=head_dim,
            max_position_embeddings=max_position_embeddings,
        )

    @property
    def original_context_tokens(self) -> int:
        """Up to this many tokens the base frequencies hold for `dynamic` and `longrope`."""
        if self.kind == "dynamic":
            return self.max_position_embeddings
        return int(self._number(_ORIGINAL_CONTEXT, self.max_position_embeddings))

    @property
    def context_tokens(self) -> int:
        """The context that the frequencies are made for.

        `linear` and `dynamic` stretch `max_position_embeddings`, `yarn` the original context; for the others
        `max_position_embeddings` is already the stretched one.
        """
        factor = max(self._number("factor", 1.0), 1.0)
        if self.kind in ("linear", "dynamic"):
            return int(self.max_position_embeddings * factor)
        if self.kind == "yarn":
            return max(self.max_position_embeddings, int(self.original_context_tokens * factor))
        return self.max_position_embeddings

    def _number(self, key: str, default: float) -> float:
        value = self.parameters.get(key, default)
        assert isinstance(value, int | float)
        return value


def check_rope_settings(raw: Mapping[str, object], where: str) -> Mapping[str, object]:
    """The rope settings of a config.json in the newer spelling, each key checked.

    Args:
        raw: the content of config.json.
        where: named in every message.

    Raises:
        BaseModelError: a setting is unknown, missing, given twice, or not a number it could be.
    """
    settings = _one_spelling(raw, where)
    kind = settings.get("rope_type") or settings.get("type") or "default"
    if not isinstance(kind, str) or kind not in _KINDS or settings.get("type", kind) != kind:
        supported = ", ".join(_KINDS)
        named = settings.get("type", kind)
        raise BaseModelError(f"{where}: rope type {named!r} is not supported; it must be one of {supported}")
    required, optional = _KINDS[kind]
    for key in settings:
        if key not in required | optional | _ALWAYS_ALLOWED:
            raise BaseModelError(
                f"{where}: rope '{key}' cannot be honoured with rope type {kind!r}; remove it"
            )
    for key in sorted(required):
        if settings.get(key) is None:
            raise BaseModelError(f"{where}: rope '{key}' is missing for rope type {kind!r}; give it")
    for key, value in settings.items():
        _check_value(key, value, where)
    kept = {
        key: value
        for key, value in settings.items()
        if key not in ("type", "finetuned", "partial_rotary_factor")
    }
    return {**kept, "rope_type": kind}


def _one_spelling(raw: Mapping[str, object], where: str) -> dict[str, object]:
    old, new = raw.get("rope_scaling"), raw.get("rope_parameters")
    if old is not None and new is not None:
        raise BaseModelError(f"{where}: has both 'rope_scaling' and 'rope_parameters'; remove one of them")
    settings = new if old is None else old
    if settings is None:
        settings = {}
    if not isinstance(settings, dict):
        raise BaseModelError(f"{where}: the rope settings are {settings!r}, not an object; correct them")
    given = {key: value for key, value in settings.items() if value is not None}
    theta = raw.get("rope_theta")
    return given if theta is None else {"rope_theta": theta, **given}


def _check_value(key: str, value: object, where: str) -> None:
    if key in ("rope_type", "type", "finetuned"):
        return
    if key == "truncate":
        valid = isinstance(value, bool)
    elif key == "partial_rotary_factor":
        valid = value == 1
    elif key in ("short_factor", "long_factor"):
        valid = isinstance(value, list) and all(_is_positive(number) for number in value)
    else:
        valid = _is_positive(value)
    if not valid:
        raise BaseModelError(f"{where}: rope '{key}' is {value!r}, which cannot be honoured; correct it")


def _is_positive(value: object) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0
    )
