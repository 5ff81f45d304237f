"""Lines that clients put at the head of a prompt to tell who pays, other ones each time. They mean nothing to a model,
and all that follows one that has changed is read anew."""

import re
from typing import Any

import msgspec

from enginehouse.runtimes.contract import Chat, Prompt

LINE = re.compile(r"x-anthropic-billing-header:[^\n]*\n*")  # Claude Code's


def without_attribution(prompt: Prompt) -> Prompt:
    if not isinstance(prompt, Chat) or prompt.messages[0]["role"] not in ("system", "developer"):
        return prompt
    first, *rest = prompt.messages
    content = stripped(first["content"])
    if content == first["content"]:
        return prompt
    return msgspec.structs.replace(
        prompt, messages=[first | {"content": content}, *rest] if content else rest or [first]
    )


def stripped(content: Any) -> Any:
    """Of a message: text, or parts of which the first is one."""
    match content:
        case str() if found := LINE.match(content):
            return content[found.end() :]
        case [{"type": "text", "text": str(text)} as part, *rest] if found := LINE.match(text):
            left = text[found.end() :]
            return [part | {"text": left}, *rest] if left else rest
        case _:
            return content
