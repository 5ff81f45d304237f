"""For a template that knows no tools: we list them in the system message and ask for {"name": …, "arguments": …}."""

import itertools
import json
from collections.abc import Sequence
from typing import Any

from enginehouse.runtimes.structure import Repeat, Structure
from enginehouse.runtimes.tool_calls.parser import Messages, ParseOptions, beginning, object_structure, read_object
from enginehouse.runtimes.tool_calls.scanner import Reading, Scanner

OBJECT = '{"name"'
INSTRUCTION = """You may call these functions:
{tools}
To call one, answer with nothing but a JSON object: {{"name": "the function's name", "arguments": {{its arguments}}}}
To call several, write one such object a line. If you need none, answer as usual."""


def read_calls(scanner: Scanner, options: ParseOptions, trigger: str) -> Reading[None]:
    scanner.held = trigger + scanner.held
    while (yield from read_object(scanner)):
        if not (yield from scanner.starts((OBJECT,))):
            return
        scanner.held = OBJECT + scanner.held


def calls(options: ParseOptions) -> Structure:
    call = object_structure(options, spaced=True)
    return Repeat(call) if options.parallel else call


def in_words(messages: Messages, tools: Sequence[dict[str, Any]], template: str) -> Messages:
    """Tools, calls and results as plain messages of system, assistant and user."""
    out = joined([spoken(message) for message in messages])
    if not tools:
        return out
    listed = INSTRUCTION.format(tools="\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools))
    role = "user" if "System role not supported" in template else "system"
    first = 1 if role == "system" else len(out)  # a system message that comes later is no place for them
    at = next((at for at, message in enumerate(out[:first]) if message["role"] == role), None)
    if at is None:
        return [{"role": role, "content": listed}, *out]
    both = f"{out[at]['content']}\n\n{listed}" if role == "system" else f"{listed}\n\n{out[at]['content']}"
    return [*out[:at], out[at] | {"content": both}, *out[at + 1 :]]


def joined(messages: Messages) -> Messages:
    """Several results are one message of the user: most templates want the roles in turn."""
    out: Messages = []
    for role, run in itertools.groupby(messages, lambda message: message["role"]):
        said = list(run)
        if role == "user":
            said = [said[-1] | {"content": "\n".join(message["content"] for message in said)}]
        out += said
    return out


def spoken(message: dict[str, Any]) -> dict[str, Any]:
    if message["role"] == "tool":
        return {"role": "user", "content": f"{message.get('name', 'The function')} returned: {message['content']}"}
    if calls := message.get("tool_calls"):
        written = [json.dumps({key: call["function"][key] for key in ("name", "arguments")}) for call in calls]
        return {"role": message["role"], "content": "\n".join(filter(None, [message["content"], *written]))}
    return message


PARSER = beginning(
    "generic",
    lambda template: False,
    lambda options: (OBJECT,),
    read_calls,
    calls,
    knows_tools=False,
    prepare=in_words,
)
