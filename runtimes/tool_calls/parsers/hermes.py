"""Hermes and Qwen: <tool_call>{"name": …, "arguments": …}</tool_call>, one for each call."""

from enginehouse.runtimes.structure import Structure, concat
from enginehouse.runtimes.tool_calls.format import Setting, object_structure, read_object, tagged
from enginehouse.runtimes.tool_calls.scanner import Incoming, Reading

BEGIN, END = "<tool_call>", "</tool_call>"


def recognizes(template: str) -> bool:
    return BEGIN in template and "<function=" not in template


def read_call(incoming: Incoming, setting: Setting, trigger: str) -> Reading[None]:
    if (yield from read_object(incoming, trigger)):
        yield from incoming.starts((END,))


def after(setting: Setting) -> Structure:
    return concat("\n", object_structure(setting), f"\n{END}")


FORMAT = tagged("hermes", recognizes, (BEGIN,), read_call, after, repeats=True, marks=(BEGIN, END))
