"""Chat messages as users write them, brought to one form."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from iemas.client._types import ChatMessage
from iemas.core.errors import BadRequestError

Messages = Sequence[Mapping[str, Any] | ChatMessage]


def normalize_messages(messages: Messages) -> list[dict[str, Any]]:
    """Give messages as dictionaries with a role and a text.

    Contents in parts are joined if all parts are text.
    Raises: BadRequestError that names the message's position, never its content.
    """
    if isinstance(messages, str | Mapping):
        raise BadRequestError(
            'messages is a list: [{"role": "user", "content": "Hello!"}]', code="bad_messages"
        )
    normalized = [_normalize(index, message) for index, message in enumerate(messages)]
    if not any(message["content"].strip() for message in normalized):
        raise BadRequestError("the prompt is empty: no message has any content", code="empty")
    return normalized


def _normalize(index: int, message: object) -> dict[str, Any]:
    if isinstance(message, ChatMessage):
        return {"role": message.role, "content": message.content}
    if not isinstance(message, Mapping):
        raise BadRequestError(f"messages[{index}] is no mapping", code="bad_messages")
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise BadRequestError(f"messages[{index}] has no role", code="bad_messages")
    content = _join_parts(index, message.get("content"))
    return {**message, "role": role, "content": content}


def _join_parts(index: int, content: object) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        texts = [
            part.get("text")
            for part in content
            if isinstance(part, Mapping) and part.get("type") == "text"
        ]
        if len(texts) == len(content) and all(isinstance(text, str) for text in texts):
            return "".join(str(text) for text in texts)
    raise BadRequestError(
        f"messages[{index}] has a content that is no text; only text is served",
        code="bad_messages",
    )


def compute_memory_key(model: str, messages: Sequence[Mapping[str, Any]]) -> tuple[object, ...]:
    """Name a conversation for `TurnMemory`: the model, then one entry a message.

    Raises: BadRequestError if a message holds what JSON cannot.
    """
    try:
        entries = [json.dumps(message, sort_keys=True) for message in messages]
    except (TypeError, ValueError) as error:
        raise BadRequestError("a message holds a value that is no JSON", code="bad_messages") from (
            error
        )
    return (model, *entries)
