"""Mistral since 2025: [TOOL_CALLS]name[ARGS]{…}, one for each call."""

import re

from enginehouse.runtimes.structure import Structure, concat, one_of
from enginehouse.runtimes.tool_calls.mistral_syntax import BEGIN, THOUGHT, with_short_ids
from enginehouse.runtimes.tool_calls.parser import ParseOptions, read_list, tagged
from enginehouse.runtimes.tool_calls.scanner import Reading, Scanner

ARGUMENTS, ID = "[ARGS]", "[CALL_ID]"
HEAD = re.compile(r"\s{0,8}([\w.-]{1,64})(?:\[CALL_ID\]\w{0,64})?\[ARGS\]\s{0,8}(?=\{)")
HEAD_LENGTH = 8 + 64 + 9 + 64 + 6 + 8 + 1


def recognizes(template: str) -> bool:
    return BEGIN in template and ARGUMENTS in template


def read_call(scanner: Scanner, options: ParseOptions, trigger: str) -> Reading[None]:
    if head := (yield from scanner.match(HEAD, HEAD_LENGTH)):
        first, arguments = scanner.call(head[1])
        yield first
        yield from scanner.value(arguments)
    else:
        yield from read_list(scanner, trigger)


def after(options: ParseOptions) -> Structure:
    return one_of([concat(f"{tool.name}{ARGUMENTS}", tool.arguments) for tool in options.tools])


PARSER = tagged(
    "mistral-args",
    recognizes,
    (BEGIN,),
    read_call,
    after,
    repeats=True,
    marks=(BEGIN, ARGUMENTS, ID),
    thought=THOUGHT,
    prepare=with_short_ids,
)
