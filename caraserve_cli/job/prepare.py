"""From rows to requests: tokens, a seed, an adapter that exists. What cannot be, becomes a rejection.

Knows the library's names, not the adapters' weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

from caraserve_cli.adapters.chat_template import read_chat_template
from caraserve_cli.adapters.library import AdapterLibrary
from caraserve_cli.core import Bounds, Request, RequestRow, SamplingParams
from caraserve_cli.errors import AdapterError, RowError, RowErrorCode
from caraserve_cli.model.resolve import ResolvedBase
from caraserve_cli.model.shapes import KNOWN_BASES
from caraserve_cli.model.tokenizer import Tokenizer
from caraserve_cli.requests.fields import excerpt
from caraserve_cli.requests.stream import RejectedRow

# Longest excerpt of an adapter's name in a message: any text may stand where a name should.
_MAX_NAME_CHARS = 100


class Ground(Protocol):
    """What rows are made requests for."""

    @property
    def base(self) -> ResolvedBase: ...

    @property
    def tokenizer(self) -> Tokenizer | None: ...

    @property
    def library(self) -> AdapterLibrary: ...


class Preparer:
    """Makes requests of rows.

    Args:
        tokenizer: None for a base without one; then prompts are token ids.
        library: which adapters exist.
        vocab_size: token ids are below this.
        run_seed: rows without a seed get one from this and their id.
        base_names: what OpenAI Batch lines may call the base.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        library: AdapterLibrary,
        vocab_size: int,
        run_seed: int,
        base_names: Collection[str] = (),
    ) -> None:
        self._tokenizer = tokenizer
        self._library = library
        self._vocab_size = vocab_size
        self._run_seed = run_seed
        self._base_names = base_names
        self._templates: dict[str, str | None] = {}
        self._same_templates: dict[str | None, str | None] = {}

    @classmethod
    def of(cls, ground: Ground, run_seed: int) -> Preparer:
        """What makes requests for a run on this ground."""
        vocab_size = ground.base.config.shape.vocab_size
        return cls(ground.tokenizer, ground.library, vocab_size, run_seed, _names_of(ground.base))

    def prepare(self, rows: Sequence[RequestRow]) -> list[Request | RejectedRow]:
        """One request or rejection per row, in order; plain prompts are tokenised together."""
        plain = [row.prompt for row in rows if row.prompt is not None]
        encoded = iter(self._tokenizer.encode_batch(plain) if self._tokenizer and plain else ())
        prepared: list[Request | RejectedRow] = []
        for row in rows:
            prompt = next(encoded, None) if row.prompt is not None else None
            try:
                prepared.append(self._request(row, prompt))
            except RowError as error:
                prepared.append(rejected(row, error))
        return prepared

    def _request(self, row: RequestRow, encoded: Sequence[int] | None) -> Request:
        adapter = self._adapter(row)
        sampling = self._with_findable_stops(row.sampling)
        if sampling.seed is None:
            sampling = dataclasses.replace(sampling, seed=self._seed_for(row.id))
        return Request(
            id=row.id,
            line=row.line,
            prompt_token_ids=self._token_ids(row, adapter, encoded),
            adapter=adapter,
            sampling=sampling,
            bounds=row.bounds,
            arrival_ms=row.arrival_ms,
            metadata=row.metadata,
            batch_call=row.batch_call,
        )

    def _with_findable_stops(self, sampling: SamplingParams) -> SamplingParams:
        """Stop strings are looked for in the text, of which special tokens are no part: those that are one
        end the answer by its id."""
        if not sampling.stop:
            return sampling
        if self._tokenizer is None:
            raise RowError(
                RowErrorCode.NO_TOKENIZER,
                "stop: the base has no tokenizer, so there is no text to find it in; give stop_token_ids",
            )
        special_ids = self._tokenizer.special_ids
        texts = tuple(text for text in sampling.stop if text not in special_ids)
        for text in texts:
            within = next((name for name in special_ids if name in text), None)
            if within is not None:
                raise RowError(
                    RowErrorCode.INVALID_REQUEST,
                    f"stop: {excerpt(text)} has the special token {excerpt(within)} in it, which is no part "
                    "of an answer's text; give that token alone",
                )
        ids = tuple(special_ids[text] for text in sampling.stop if text in special_ids)
        stop_token_ids = (*sampling.stop_token_ids, *ids)
        return dataclasses.replace(sampling, stop=texts, stop_token_ids=stop_token_ids)

    def _adapter(self, row: RequestRow) -> str | None:
        call = row.batch_call
        if call is not None:
            if self._tokenizer is None:
                message = "the base has no tokenizer, and the answer to an OpenAI Batch line is a text"
                raise RowError(RowErrorCode.NO_TOKENIZER, message)
            if call.model in self._base_names and call.model not in self._library:
                return None
        name = row.adapter if call is None else call.model
        if name is not None and name not in self._library:
            unknown = self._unknown_adapter(name) if call is None else self._unknown_model(name)
            raise RowError(RowErrorCode.UNKNOWN_ADAPTER, unknown)
        return name

    def _template_of(self, adapter: str) -> str | None:
        """The chat template that an adapter was trained with, as far as it is beside it."""
        if adapter not in self._templates:
            try:
                template = read_chat_template(adapter, self._library.path(adapter))
            except AdapterError as error:
                raise RowError(RowErrorCode.CHAT_TEMPLATE, str(error)) from error
            # Adapters by the thousand have the same one.
            self._templates[adapter] = self._same_templates.setdefault(template, template)
        return self._templates[adapter]

    def _token_ids(
        self, row: RequestRow, adapter: str | None, encoded: Sequence[int] | None
    ) -> tuple[int, ...]:
        if row.prompt_token_ids is not None:
            token_ids = row.prompt_token_ids
        elif self._tokenizer is None:
            raise RowError(
                RowErrorCode.NO_TOKENIZER,
                "the base has no tokenizer, so a prompt must be given as prompt_token_ids",
            )
        elif encoded is not None:
            token_ids = tuple(encoded)
        else:
            assert row.messages is not None
            template = None if adapter is None else self._template_of(adapter)
            token_ids = tuple(self._tokenizer.encode_chat(row.messages, template))
        if not token_ids:
            raise RowError(RowErrorCode.INVALID_REQUEST, "prompt: it has no tokens; give it some text")
        self._check_vocabulary(row, token_ids)
        return token_ids

    def _check_vocabulary(self, row: RequestRow, token_ids: Sequence[int]) -> None:
        for key, ids in (("prompt_token_ids", token_ids), ("stop_token_ids", row.sampling.stop_token_ids)):
            wrong = next((token_id for token_id in ids if not 0 <= token_id < self._vocab_size), None)
            if wrong is not None:
                raise RowError(
                    RowErrorCode.TOKEN_OUT_OF_RANGE,
                    f"{key}: token id {wrong} is outside the vocabulary of {self._vocab_size}",
                )

    def _unknown_adapter(self, name: str) -> str:
        closest = self._library.closest(name)
        hint = (
            f"; did you mean '{closest}'?"
            if closest
            else "; `adapter` is its path below an --adapters folder"
        )
        shown = _shortened(name)
        if not len(self._library):
            return f"adapter '{shown}' is unknown: there are no adapters; --adapters names their folder"
        return f"adapter '{shown}' is in none of the --adapters folders{hint}"

    def _unknown_model(self, name: str) -> str:
        """The same of an OpenAI Batch line, which names the base too."""
        base = min(self._base_names, key=len, default="")
        closest = self._library.closest(name)
        hint = f"; did you mean '{closest}'?" if closest else ""
        return (
            f"model '{_shortened(name)}' is neither the base, '{base}', nor an adapter below --adapters{hint}"
        )

    def _seed_for(self, request_id: str) -> int:
        """The same id gets the same draws in every run with the same run seed."""
        digest = blake2b(f"{self._run_seed}:{request_id}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little")


def _shortened(name: str) -> str:
    return name if len(name) <= _MAX_NAME_CHARS else name[: _MAX_NAME_CHARS - 1] + "…"


def _names_of(base: ResolvedBase) -> frozenset[str]:
    """As it was typed, and the last part of that; its hub id, if it was a short name."""
    names = {base.name, Path(base.name).resolve().name}
    if (known := KNOWN_BASES.get(base.name.lower())) is not None:
        names |= {known.hub_id, known.hub_id.rpartition("/")[2]}
    return frozenset(names)


def rejected(row: RequestRow, error: RowError) -> RejectedRow:
    """The rejection of a valid row that cannot be answered here."""
    return RejectedRow(
        line=row.line,
        request_id=row.id,
        code=error.code,
        message=error.message,
        carried_bound=row.bounds != Bounds(),
        is_batch=row.batch_call is not None,
    )
