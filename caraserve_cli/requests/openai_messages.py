"""The messages of an OpenAI chat, of which nothing is passed over in silence: chat templates leave out roles
and keys that they do not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from caraserve_cli.requests.fields import Fields
from caraserve_cli.requests.messages import parse_messages

# OpenAI's roles, and what chat templates call them. Its others belong to tools, which are not served.
_ROLES: Final[Mapping[object, str]] = {
    "developer": "system",
    "system": "system",
    "user": "user",
    "assistant": "assistant",
}
# What asks for nothing, whatever the key.
_NOTHING: Final[tuple[object, ...]] = (None, [], "")


def parse_openai_messages(fields: Fields) -> tuple[Mapping[str, object], ...] | None:
    """The messages of a chat; None where there are none.

    Raises:
        RowError: INVALID_REQUEST, naming the message and the key that cannot be honoured.
    """
    messages = parse_messages(fields)
    if messages is None:
        return None
    return tuple(_parse_message(fields, f"messages[{index}]", each) for index, each in enumerate(messages))


def _parse_message(fields: Fields, name: str, message: Mapping[str, object]) -> Mapping[str, object]:
    role = _ROLES.get(message["role"])
    if role is None:
        *most, last = (f'"{each}"' for each in _ROLES)
        raise fields.wrong(f"{name}.role", f"{', '.join(most)} or {last}", message["role"])
    for key, value in message.items():
        if key not in ("role", "content") and value not in _NOTHING:
            raise fields.refused(f"{name}.{key} cannot be honoured: only role and content are; leave it out")
    return {"role": role, "content": message["content"]}
