"""What all of Mistral's forms of tool calls share: the mark that begins them, and ids of nine letters."""

import hashlib
from collections.abc import Sequence
from typing import Any

from enginehouse.runtimes.tool_calls.parser import Messages

BEGIN = "[TOOL_CALLS]"
THOUGHT = ("[THINK]", "[/THINK]")
ID_LENGTH = 9  # the templates refuse any other


def with_short_ids(messages: Messages, tools: Sequence[dict[str, Any]], template: str) -> Messages:
    """Each id becomes the same nine letters in the call and in its result."""
    out = []
    for message in messages:
        message = dict(message)
        if calls := message.get("tool_calls"):
            message["tool_calls"] = [call | {"id": short(call["id"])} for call in calls]
        if id := message.get("tool_call_id"):
            message["tool_call_id"] = short(id)
        out.append(message)
    return out


def short(id: str) -> str:
    return id if len(id) == ID_LENGTH and id.isalnum() else hashlib.sha256(id.encode()).hexdigest()[:ID_LENGTH]
