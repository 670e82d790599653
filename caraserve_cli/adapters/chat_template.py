"""The chat template that trainers save beside an adapter, with the tokenizer. Knows no tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

from caraserve_cli.errors import AdapterError

_TEMPLATE_NAME = "chat_template.jinja"
_TOKENIZER_CONFIG_NAME = "tokenizer_config.json"


def read_chat_template(adapter: str, folder: Path) -> str | None:
    """The template in an adapter's folder; None where there is none.

    As transformers takes it: a file of its own comes before the tokenizer's config, and of several templates
    there the one called `default` counts.

    Raises:
        AdapterError: it cannot be read, or there are several, none of which is called so.
    """
    template_path, config_path = folder / _TEMPLATE_NAME, folder / _TOKENIZER_CONFIG_NAME
    try:
        if template_path.is_file():
            return template_path.read_text(encoding="utf-8")
        config = json.loads(config_path.read_text(encoding="utf-8")) if config_path.is_file() else {}
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise AdapterError(adapter, f"its chat template cannot be read ({reason})") from error
    template = config.get("chat_template") if isinstance(config, dict) else None
    if isinstance(template, list):
        named = {each.get("name"): each.get("template") for each in template if isinstance(each, dict)}
        template = named.get("default", template)
    if template is not None and not isinstance(template, str):
        raise AdapterError(
            adapter, f"{_TOKENIZER_CONFIG_NAME} has chat templates, none of which is called 'default'"
        )
    return template
