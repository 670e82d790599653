"""The `messages` of a chat request, checked and brought to the form that a chat template takes.

Knows no template: roles and their order are the template's to judge.
"""

from __future__ import annotations

from collections.abc import Mapping

from caraserve_cli.requests.fields import Fields


def parse_messages(fields: Fields) -> tuple[Mapping[str, object], ...] | None:
    """The chat messages of a request; None where there are none.

    Every message has a string `role` and `content`; a content given as text parts becomes one string,
    the parts joined by newlines (as vLLM does for text-only templates). Other keys are kept as they are.

    Raises:
        RowError: INVALID_REQUEST, naming the message and the key.
    """
    values = fields.items("messages", "objects")
    if values is None:
        return None
    if not values:
        raise fields.refused("messages is empty")
    return tuple(_parse_message(fields, f"messages[{index}]", value) for index, value in enumerate(values))


def _parse_message(fields: Fields, name: str, message: object) -> Mapping[str, object]:
    if not isinstance(message, dict):
        raise fields.wrong(name, "an object with role and content", message)
    for key in ("role", "content"):
        if key not in message:
            raise fields.refused(f"{name} has no {key}")
    if not isinstance(message["role"], str):
        raise fields.wrong(f"{name}.role", "a string", message["role"])
    return {**message, "content": _parse_content(fields, f"{name}.content", message["content"])}


def _parse_content(fields: Fields, name: str, content: object) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise fields.wrong(name, "a string or a list of text parts", content)
    return "\n".join(_parse_part(fields, f"{name}[{index}]", part) for index, part in enumerate(content))


def _parse_part(fields: Fields, name: str, part: object) -> str:
    must_be = 'a part {"type": "text", "text": …}'
    if not isinstance(part, dict):
        raise fields.wrong(name, must_be, part)
    if part.get("type") != "text":
        raise fields.wrong(
            f"{name}.type", '"text" (no other kind of content can be answered)', part.get("type")
        )
    unknown_keys = part.keys() - {"type", "text"}
    if unknown_keys:
        raise fields.refused(f"{name} must be {must_be}, has other keys")
    if not isinstance(part.get("text"), str):
        raise fields.wrong(f"{name}.text", "a string", part.get("text"))
    return str(part["text"])
