"""Hermes and Qwen: <tool_call>{"name": …, "arguments": …}</tool_call>, one for each call."""

from enginehouse.runtimes.structure import Structure, concat
from enginehouse.runtimes.tool_calls.parser import ParseOptions, object_structure, read_object, tagged
from enginehouse.runtimes.tool_calls.scanner import Reading, Scanner

BEGIN, END = "<tool_call>", "</tool_call>"


def recognizes(template: str) -> bool:
    return BEGIN in template and "<function=" not in template


def read_call(scanner: Scanner, options: ParseOptions, trigger: str) -> Reading[None]:
    if (yield from read_object(scanner, trigger)):
        yield from scanner.starts((END,))


def after(options: ParseOptions) -> Structure:
    return concat("\n", object_structure(options), f"\n{END}")


PARSER = tagged("hermes", recognizes, (BEGIN,), read_call, after, repeats=True, marks=(BEGIN, END))
