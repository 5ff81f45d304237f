"""What all of DeepSeek's forms of tool calls share: the marks, and how they are read."""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from enginehouse.runtimes.structure import Structure
from enginehouse.runtimes.tool_calls.parser import Messages, ParseOptions, ToolParser, tagged
from enginehouse.runtimes.tool_calls.scanner import Reading, Scanner

BEGIN, END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, NAME, END_CALL = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
HEAD = re.compile(rf"\s{{0,8}}{CALL}(?:function{NAME})?([\w.-]{{1,64}})(?:{NAME})?\s{{0,8}}(?:```json)?\s{{0,8}}(?={{)")
HEAD_LENGTH = 200


def deepseek(name: str, recognizes: Callable[[str], bool], after: Callable[[ParseOptions], Structure]) -> ToolParser:
    """Versions differ in what stands within the marks."""
    marks = (BEGIN, END, CALL, NAME, END_CALL)
    return tagged(name, recognizes, (BEGIN,), read_calls, after, repeats=False, marks=marks, prepare=arguments_as_text)


def read_calls(scanner: Scanner, options: ParseOptions, trigger: str) -> Reading[None]:
    before = trigger
    while head := (yield from scanner.match(HEAD, HEAD_LENGTH)):
        before = ""
        first, arguments = scanner.call(head[1])
        yield first
        yield from scanner.value(arguments)
        for tag in ("```", END_CALL):
            yield from scanner.starts((tag,))
        if (yield from scanner.starts((END,))):
            return
    if before:
        yield scanner.back(before)


def arguments_as_text(messages: Messages, tools: Sequence[dict[str, Any]], template: str) -> Messages:
    """The templates add them to a text."""
    return [
        message | {"tool_calls": [call | {"function": as_text(call["function"])} for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else message
        for message in messages
    ]


def as_text(function: dict[str, Any]) -> dict[str, Any]:
    return function | {"arguments": json.dumps(function["arguments"], ensure_ascii=False)}
