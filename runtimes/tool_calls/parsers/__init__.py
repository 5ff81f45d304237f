"""One file per way to write tool calls; each exports one PARSER and knows no other. The directory is the registry."""

import functools
import importlib
import pkgutil

from enginehouse.runtimes.tool_calls.parser import ToolParser
from enginehouse.runtimes.tool_calls.parsers import generic


@functools.cache
def parsers() -> dict[str, ToolParser]:
    modules = (importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__))
    return {module.PARSER.name: module.PARSER for module in modules}


@functools.cache
def parser_of(template: str | None) -> ToolParser:
    """For the calls that a chat template teaches; for our own, where it teaches none."""
    return next((parser for parser in parsers().values() if parser.recognizes(template or "")), generic.PARSER)


def marks(template: str | None) -> frozenset[str]:
    """Tokens that must show their text for its answers to be understood."""
    parser = parser_of(template)
    return frozenset((*parser.marks, *parser.thought))
