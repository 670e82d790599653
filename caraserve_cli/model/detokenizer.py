"""The text of one answer as its tokens arrive, and the stop strings in it.

The text is what the tokens add to the prompt: a leading space survives, special tokens are left out, and
characters whose last bytes have not come are withheld. It is a function of the tokens alone. This module
does not know sampling: which token ids end an answer is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from caraserve_cli.model.tokenizer import Tokenizer

# Tokens that are decoded before the ones that are looked at, so that these do not begin a text: there some
# decoders strip a space.
_NUM_CONTEXT_TOKENS = 6
# From this many tokens on, context included, the window moves.
_LONGEST_WINDOW = 24
# What a tokenizer's decoder puts in place of bytes that are no UTF-8: also of the first bytes of a character.
_INCOMPLETE = "\ufffd"


class Detokenizer:
    """Follows one answer.

    Args:
        tokenizer: of the base model.
        prompt_token_ids: the prompt, or its end; may be empty.
        stop: strings that end the answer; none of them empty.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt_token_ids: Sequence[int], stop: tuple[str, ...] = ()
    ) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._longest_stop = max(map(len, stop), default=0)
        self._stopped_text: str | None = None
        # Tokens from `_start` on are decoded together. Their text begins with `_context_text`, which belongs
        # to the prompt or is in `_known` already.
        self._token_ids = _context(tokenizer, prompt_token_ids)
        self._start = 0
        self._known = ""
        self._context_text = tokenizer.decode(self._token_ids)

    def push(self, token_id: int) -> bool:
        """Adds a token; not the one that ends an answer by its id, whose text is no part of it.

        Returns:
            Whether the text now holds a stop string. No token may follow then.
        """
        self._token_ids.append(token_id)
        if not self._stop:
            # Without stop strings nobody asks before the end: `text` decodes everything at once.
            return False
        text = self._known + self._decoded(len(self._token_ids))
        end = self._stop_position(text)
        if end is not None:
            self._stopped_text = text[:end]
            return True
        self._advance(text)
        return False

    @property
    def text(self) -> str:
        """The text so far, without the stop string and what follows it."""
        if self._stopped_text is not None:
            return self._stopped_text
        for end in range(len(self._token_ids), self._start, -1):
            text = self._decoded(end)
            if not text.endswith(_INCOMPLETE):
                return self._known + text
        return self._known

    def _decoded(self, end: int) -> str:
        """The text of the tokens up to `end` that is not in `_known`."""
        text = self._tokenizer.decode(self._token_ids[self._start : end])
        if text.startswith(self._context_text):
            return text[len(self._context_text) :]
        # The prompt ended inside a character, which is complete now and counts as new.
        same = takewhile(lambda pair: pair[0] == pair[1], zip(text, self._context_text, strict=False))
        return text[sum(1 for _ in same) :]

    def _stop_position(self, text: str) -> int | None:
        # Earlier text was searched before; a stop string may have begun in it.
        begin = max(0, len(self._known) - self._longest_stop)
        found = [position for stop in self._stop if (position := text.find(stop, begin)) >= 0]
        return min(found, default=None)

    def _advance(self, text: str) -> None:
        """Moves the window, so that a long answer is not decoded again with each of its tokens.

        Only where decoding can be cut in two: not inside a character, and not between byte tokens, which are
        valid or not as a whole.
        """
        window = len(self._token_ids) - self._start
        last = self._token_ids[-1]
        if window < _LONGEST_WINDOW or text.endswith(_INCOMPLETE) or self._tokenizer.is_byte(last):
            return
        context = _context(self._tokenizer, self._token_ids[self._start :])
        self._known = text
        self._start = len(self._token_ids) - len(context)
        self._context_text = self._tokenizer.decode(context)


def _context(tokenizer: Tokenizer, token_ids: Sequence[int]) -> list[int]:
    """The last few tokens; more where these would begin between byte tokens, or have no text at all."""
    begin = max(0, len(token_ids) - _NUM_CONTEXT_TOKENS)
    while begin > 0 and (tokenizer.is_byte(token_ids[begin]) or not tokenizer.decode(token_ids[begin:])):
        begin -= 1
    return list(token_ids[begin:])
