"""Phi-4: <|tool_call|>[{"name": …, "arguments": …}, …]<|/tool_call|>, or functools[…] without an end."""

from enginehouse.runtimes.structure import Structure
from enginehouse.runtimes.tool_calls.parser import ParseOptions, list_structure, read_list, tagged
from enginehouse.runtimes.tool_calls.scanner import Reading, Scanner

BEGIN, END, OTHER = "<|tool_call|>", "<|/tool_call|>", "functools["


def recognizes(template: str) -> bool:
    return BEGIN in template or OTHER in template or "<|tool|>" in template


def read_calls(scanner: Scanner, options: ParseOptions, trigger: str) -> Reading[None]:
    if trigger == OTHER:
        scanner.held, trigger = "[" + scanner.held, OTHER[:-1]
    yield from read_list(scanner, trigger, END)


def after(options: ParseOptions) -> Structure:
    return list_structure(options, END)


PARSER = tagged("phi", recognizes, (BEGIN, OTHER), read_calls, after, repeats=False, marks=(BEGIN, END))
