"""Llama 4, Llama 3.2 and Gemma with a template for it: the whole answer is [f(a=1), g(b="x")]."""

from enginehouse.runtimes.structure import ConstString, Repeat, Structure, concat, one_of
from enginehouse.runtimes.tool_calls.parser import ParseOptions, beginning, optional
from enginehouse.runtimes.tool_calls.python_syntax import call_structure, read_call
from enginehouse.runtimes.tool_calls.scanner import Reading, Scanner

START, END = "<|python_start|>", "<|python_end|>"


def recognizes(template: str) -> bool:
    return "func_name1(" in template


def triggers(options: ParseOptions) -> tuple[str, ...]:
    return (START, *(f"[{tool.name}(" for tool in options.tools))


def read_calls(scanner: Scanner, options: ParseOptions, trigger: str) -> Reading[None]:
    before = "["
    if trigger == START:
        if not (yield from scanner.starts(("[",))):
            yield scanner.back(trigger)
            return
        before = f"{START}["
    else:
        scanner.held = trigger[1:] + scanner.held
    while (yield from read_call(scanner, before)):
        if not (before := (yield from scanner.starts((",",)))):
            break
    else:
        return
    yield from scanner.starts(("]",))
    yield from scanner.starts((END,))


def calls(options: ParseOptions) -> Structure:
    first = one_of([concat(ConstString(f"[{tool.name}(", spaced=True), call_structure(tool)) for tool in options.tools])
    later = one_of([concat(f", {tool.name}(", call_structure(tool)) for tool in options.tools])
    return concat(first, optional(Repeat(later)), "]") if options.parallel else concat(first, "]")


PARSER = beginning("pythonic", recognizes, triggers, read_calls, calls, marks=(START, END))
