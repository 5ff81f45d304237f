"""Mistral: [TOOL_CALLS][{"name": …, "arguments": …}, …]."""

import hashlib
from collections.abc import Sequence
from typing import Any

from enginehouse.runtimes.structure import Shape
from enginehouse.runtimes.tool_calls.format import Messages, Setting, list_shape, read_list, tagged
from enginehouse.runtimes.tool_calls.scanner import Incoming, Reading

BEGIN = "[TOOL_CALLS]"
ID_LENGTH = 9  # the templates refuse any other


def recognizes(template: str) -> bool:
    return BEGIN in template and "[ARGS]" not in template


def read_calls(incoming: Incoming, setting: Setting, trigger: str) -> Reading[None]:
    yield from read_list(incoming, trigger)


def after(setting: Setting) -> Shape:
    return list_shape(setting)


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


FORMAT = tagged(
    "mistral",
    recognizes,
    (BEGIN,),
    read_calls,
    after,
    repeats=False,
    marks=(BEGIN,),
    thought=("[THINK]", "[/THINK]"),
    prepare=with_short_ids,
)
