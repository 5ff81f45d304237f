"""Phi-4: <|tool_call|>[{"name": …, "arguments": …}, …]<|/tool_call|>, or functools[…] without an end."""

from enginehouse.runtimes.structure import Structure
from enginehouse.runtimes.tool_calls.format import Setting, list_structure, read_list, tagged
from enginehouse.runtimes.tool_calls.scanner import Incoming, Reading

BEGIN, END, OTHER = "<|tool_call|>", "<|/tool_call|>", "functools["


def recognizes(template: str) -> bool:
    return BEGIN in template or OTHER in template or "<|tool|>" in template


def read_calls(incoming: Incoming, setting: Setting, trigger: str) -> Reading[None]:
    if trigger == OTHER:
        incoming.held, trigger = "[" + incoming.held, OTHER[:-1]
    yield from read_list(incoming, trigger, END)


def after(setting: Setting) -> Structure:
    return list_structure(setting, END)


FORMAT = tagged("phi", recognizes, (BEGIN, OTHER), read_calls, after, repeats=False, marks=(BEGIN, END))
