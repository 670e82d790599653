"""Text to token ids and back, with the tokenizer that belongs to a base model.

A thin layer over transformers' AutoTokenizer. It does not know requests; `detokenizer` follows one answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import cast

from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from caraserve_cli.errors import BaseModelError, RowError, RowErrorCode

# How vocabularies of SentencePiece write a space.
_SPACE_MARK = "\u2581"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


class Tokenizer:
    """The tokenizer of one base model."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        # A tokenizer.json may carry those of its training; a prompt is neither cut nor filled up.
        self._backend.no_truncation()
        self._backend.no_padding()

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included. The model's own vocabulary may be padded beyond it."""
        return len(self._tokenizer)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, with the special tokens that the model wants around a prompt."""
        return [encoding.ids for encoding in self._backend.encode_batch(list(texts), add_special_tokens=True)]

    def encode_chat(self, messages: Sequence[Mapping[str, object]], template: str | None = None) -> list[int]:
        """Token ids of a conversation in a chat template, the model's by default, up to where the assistant
        speaks.

        Raises:
            RowError: there is no chat template, or the template refuses the messages.
        """
        if template is None and self._tokenizer.chat_template is None:
            raise RowError(
                RowErrorCode.CHAT_TEMPLATE,
                "the base model has no chat template; give 'prompt' instead of 'messages'",
            )
        try:
            # Values may be lists of parts too: what they must be is the template's business.
            text = self._tokenizer.apply_chat_template(
                cast("list[dict[str, str]]", list(messages)),
                chat_template=template,
                add_generation_prompt=True,
                tokenize=False,
            )
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
            reason = " ".join(str(error).split())
            raise RowError(
                RowErrorCode.CHAT_TEMPLATE, f"the chat template refuses 'messages' ({reason}); correct them"
            ) from error
        # The template has written the special tokens.
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of `token_ids` without special tokens; bytes that are no UTF-8 become U+FFFD."""
        text: str = self._backend.decode(token_ids, skip_special_tokens=True)
        return text

    def token_text(self, token_id: int) -> str:
        """The text of one token by itself, a special one's name too; bytes that are no UTF-8 become U+FFFD.
        Unlike in `decode`, a leading space stays where the vocabulary marks it."""
        token: str | None = self._backend.id_to_token(token_id)
        if token is None:
            return ""
        if _SPACE_MARK in token:
            return token.replace(_SPACE_MARK, " ")
        return self.decode([token_id]) or token

    @cached_property
    def special_ids(self) -> Mapping[str, int]:
        """The tokens that `decode` leaves out, by their names."""
        added = self._backend.get_added_tokens_decoder()
        return {token.content: token_id for token_id, token in added.items() if token.special}

    def is_byte(self, token_id: int) -> bool:
        """Whether the token stands for one byte, as `<0x0A>` does in vocabularies with byte fallback."""
        token = self._backend.id_to_token(token_id)
        return token is not None and len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def load_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer of a checkpoint folder; None where the folder has none.

    Raises:
        BaseModelError: its files cannot be read, or it has no fast tokenizer.
    """
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # tokenizers raises a bare Exception for a broken tokenizer.json
        reason = " ".join(str(error).split())
        raise BaseModelError(f"{folder}: the tokenizer cannot be read ({reason}); fetch it again") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise BaseModelError(f"{folder}: the tokenizer has no fast version; save one with a tokenizer.json")
    return Tokenizer(tokenizer)
