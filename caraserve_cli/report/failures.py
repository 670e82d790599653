"""Failed rows by their code, with the first of each as an example. Knows the keys of an error line."""

from __future__ import annotations

from collections.abc import Mapping

# Characters of an example's message, and of its id. Chosen, not measured.
_MOST_CHARACTERS = 300


class Failures:
    """The first failed row of each code; there are only so many codes."""

    def __init__(self) -> None:
        self._examples: dict[str, dict[str, object]] = {}

    def add_row(self, row: Mapping[str, object]) -> None:
        """Take in one line of errors.jsonl, in our own form."""
        code = str(row["code"])
        if code not in self._examples:
            request_id = None if row["id"] is None else _shortened(str(row["id"]))
            self._examples[code] = {
                "code": code,
                "line": row["line"],
                "id": request_id,
                "message": _shortened(str(row["message"])),
            }

    def as_json(self) -> list[dict[str, object]]:
        """One entry a code, by its name."""
        return [self._examples[code] for code in sorted(self._examples)]


def _shortened(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 1]}…"
