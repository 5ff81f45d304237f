"""Mistral: [TOOL_CALLS][{"name": …, "arguments": …}, …]."""

from enginehouse.runtimes.structure import Structure
from enginehouse.runtimes.tool_calls.mistral_syntax import BEGIN, THOUGHT, with_short_ids
from enginehouse.runtimes.tool_calls.parser import ParseOptions, list_structure, read_list, tagged
from enginehouse.runtimes.tool_calls.scanner import Reading, Scanner


def recognizes(template: str) -> bool:
    return BEGIN in template and "[ARGS]" not in template


def read_calls(scanner: Scanner, options: ParseOptions, trigger: str) -> Reading[None]:
    yield from read_list(scanner, trigger)


def after(options: ParseOptions) -> Structure:
    return list_structure(options)


PARSER = tagged(
    "mistral",
    recognizes,
    (BEGIN,),
    read_calls,
    after,
    repeats=False,
    marks=(BEGIN,),
    thought=THOUGHT,
    prepare=with_short_ids,
)
