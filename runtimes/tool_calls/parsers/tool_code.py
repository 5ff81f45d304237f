"""Gemma's guide: Python calls in a fence, ```tool_code … ```, one to a line."""

from enginehouse.runtimes.structure import Repeat, Structure, concat, one_of
from enginehouse.runtimes.tool_calls.parser import ParseOptions, tagged
from enginehouse.runtimes.tool_calls.python_syntax import call_structure, read_call
from enginehouse.runtimes.tool_calls.scanner import Reading, Scanner

BEGIN, END = "```tool_code", "```"


def recognizes(template: str) -> bool:
    return BEGIN in template


def read_calls(scanner: Scanner, options: ParseOptions, trigger: str) -> Reading[None]:
    before = trigger
    while (yield from read_call(scanner, before)):
        before = ""
        if (yield from scanner.starts((END,))):
            return


def after(options: ParseOptions) -> Structure:
    call = one_of([concat(f"\n{tool.name}(", call_structure(tool)) for tool in options.tools])
    return concat(Repeat(call) if options.parallel else call, f"\n{END}")


PARSER = tagged("tool-code", recognizes, (BEGIN,), read_calls, after, repeats=False)
