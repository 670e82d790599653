"""Which tokens of an answer its text is made of: those whose log-probabilities OpenAI's output has."""

from __future__ import annotations

from caraserve_cli.core import Completion, FinishReason
from caraserve_cli.model.detokenizer import Detokenizer
from caraserve_cli.model.tokenizer import Tokenizer


def num_text_tokens(completion: Completion, tokenizer: Tokenizer) -> int:
    """How many leading tokens yield the text: without the one that ended the answer by its id, and without
    those that a stop string takes up whole."""
    num_tokens = len(completion.token_ids)
    if completion.finish_reason is not FinishReason.STOP or completion.text is None:
        return num_tokens

    def num_chars(num_first: int) -> int:
        text = Detokenizer(tokenizer, completion.request.prompt_token_ids)
        for token_id in completion.token_ids[:num_first]:
            text.push(token_id)
        return len(text.text)

    # From the end, where there are few too many.
    while num_tokens > 0 and num_chars(num_tokens - 1) >= len(completion.text):
        num_tokens -= 1
    return num_tokens
