"""Llama 3: the whole answer is {"name": …, "parameters": …}, with <|python_tag|> before it or not."""

from enginehouse.runtimes.structure import ConstString, Repeat, Structure, concat
from enginehouse.runtimes.tool_calls.parser import ParseOptions, beginning, object_structure, optional, read_object
from enginehouse.runtimes.tool_calls.scanner import Reading, Scanner

TAG, OBJECT = "<|python_tag|>", '{"name"'


def recognizes(template: str) -> bool:
    return '"parameters":' in template and "<|start_header_id|>" in template


def read_calls(scanner: Scanner, options: ParseOptions, trigger: str) -> Reading[None]:
    before = trigger
    if trigger == OBJECT:
        scanner.held, before = trigger + scanner.held, ""
    while (yield from read_object(scanner, before)):
        if not (before := (yield from scanner.starts((";",)))):
            return


def calls(options: ParseOptions) -> Structure:
    call = object_structure(options, "parameters", spaced=True)
    return concat(optional(ConstString(TAG)), Repeat(call, "; ") if options.parallel else call)


PARSER = beginning("llama-json", recognizes, lambda options: (TAG, OBJECT), read_calls, calls, marks=(TAG,))
