"""What an engine of a given size can and cannot answer. Pure: the dry run asks it without an engine."""

from __future__ import annotations

from caraserve_cli.config import EngineConfig
from caraserve_cli.core import AdapterInfo, Request
from caraserve_cli.errors import RowError, RowErrorCode


def max_output_tokens(config: EngineConfig, request: Request) -> int:
    """How long the answer may become: what the request asks for, as far as the context goes."""
    room = config.max_context_tokens - len(request.prompt_token_ids)
    return min(request.sampling.max_tokens, room)


def check_fits(config: EngineConfig, request: Request, adapter: AdapterInfo | None) -> None:
    """Refuse what could never be answered.

    Raises:
        RowError: the prompt, the answer or the adapter is larger than what the engine has.
    """
    num_prompt = len(request.prompt_token_ids)
    if num_prompt >= config.max_context_tokens:
        raise RowError(
            RowErrorCode.PROMPT_TOO_LONG,
            f"the prompt has {num_prompt} tokens and the model's context is {config.max_context_tokens}, "
            "which leaves no room for an answer; shorten the prompt",
            request.id,
        )
    num_total = num_prompt + max_output_tokens(config, request)
    if num_total > config.num_kv_tokens:
        raise RowError(
            RowErrorCode.KV_CAPACITY,
            f"prompt and answer take up to {num_total} tokens and the KV cache holds {config.num_kv_tokens}; "
            "lower max_tokens or raise --kv-memory",
            request.id,
        )
    if adapter is not None and adapter.num_bytes > config.adapter_memory_bytes:
        raise RowError(
            RowErrorCode.ADAPTER_TOO_LARGE,
            f"adapter '{adapter.name}' takes {adapter.num_bytes} bytes and the adapter pool has "
            f"{config.adapter_memory_bytes}; raise --adapter-memory",
            request.id,
        )
