"""Gemma's way to write a call, call:NAME{key:value,…}, with a mark of its own for quotes: read, and as a structure."""

import json
import re
from typing import Any

import msgspec

from enginehouse.runtimes.errors import Refused
from enginehouse.runtimes.structure import NOTHING, ConstString, JsonValue, Repeat, Structure, Until, concat, one_of
from enginehouse.runtimes.tool_calls.parser import (
    ParseOptions,
    Tool,
    ToolParser,
    parameters,
    parameters_structure,
    tagged,
)
from enginehouse.runtimes.tool_calls.scanner import Reading, Scanner

HEAD = re.compile(r"\s*call:\s*([\w.-]+)\s*(\{.*\})\s*", re.DOTALL)
KEY = re.compile(r"([{,]\s*)([A-Za-z_][\w.-]*)\s*:")
PLAIN = {"integer", "number", "boolean", "null"}  # written as in JSON


class Marks(msgspec.Struct, frozen=True):
    begin: str
    end: str
    quote: str


def gemma(name: str, marks: Marks, thought: tuple[str, str]) -> ToolParser:
    """For calls with these marks."""
    return tagged(
        name,
        lambda template: marks.begin in template,
        (marks.begin,),
        lambda scanner, options, trigger: read_call(scanner, marks),
        lambda options: after(options, marks),
        repeats=True,
        marks=(marks.begin, marks.end, marks.quote),
        thought=thought,
    )


def read_call(scanner: Scanner, marks: Marks) -> Reading[None]:
    """Shown when it is complete: only then is it JSON. What is no call is text."""
    written = yield from scanner.taken(marks.end)
    head = HEAD.fullmatch(written.removesuffix(marks.end))
    arguments = as_json(head[2], marks.quote) if head else None
    if not head or arguments is None:
        yield scanner.back(marks.begin + written)
        return
    first, show = scanner.call(head[1])
    yield first
    yield show(arguments)


def as_json(written: str, quote: str) -> str | None:
    parts = written.split(quote)
    parts[1::2] = [json.dumps(part, ensure_ascii=False) for part in parts[1::2]]
    parts[::2] = [KEY.sub(r'\1"\2":', part) for part in parts[::2]]
    try:
        return json.dumps(json.loads("".join(parts)), ensure_ascii=False)
    except (ValueError, RecursionError):
        return None


def after(options: ParseOptions, marks: Marks) -> Structure:
    return one_of([concat(f"call:{tool.name}", object_structure(tool, marks), marks.end) for tool in options.tools])


def object_structure(tool: Tool, marks: Marks) -> Structure:
    structures = [
        (parameter, concat(f"{parameter.name}:", value_structure(parameter.schema, tool, marks)))
        for parameter in parameters(tool)
    ]
    return concat("{", parameters_structure(structures, ","), "}")


def value_structure(schema: dict[str, Any], tool: Tool, marks: Marks) -> Structure:
    quote = marks.quote
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return one_of([ConstString(f"{quote}{v}{quote}" if isinstance(v, str) else json.dumps(v)) for v in values])
    if "anyOf" in schema:
        return one_of([value_structure(branch, tool, marks) for branch in schema["anyOf"]])
    match schema.get("type"):
        case list(types):
            return one_of([value_structure(schema | {"type": kind}, tool, marks) for kind in types])
        case "array":
            items = Repeat(value_structure(schema.get("items", {}), tool, marks), ",")
            return concat("[", one_of([items, NOTHING]), "]")
        case "object" if "properties" in schema:
            inner = Tool(tool.name, JsonValue(json.dumps(schema), tool.arguments.must))
            return object_structure(inner, marks)
        case kind if kind in PLAIN:
            return JsonValue(json.dumps(schema), tool.arguments.must)
    rules = schema.keys() - {"type", "description", "title", "default", "$defs", "definitions"}
    if tool.arguments.must and (rules or schema.get("type") != "string"):
        what = min(rules, default="type")
        raise Refused(f"'{what}' cannot be enforced for the arguments of '{tool.name}' on this model", "tools")
    return concat(quote, Until(quote))
