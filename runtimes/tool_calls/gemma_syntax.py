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
    except ValueError:
        return None


def after(options: ParseOptions, marks: Marks) -> Structure:
    return one_of([concat(f"call:{tool.name}", object_structure(tool, marks), marks.end) for tool in options.tools])


def object_structure(tool: Tool, marks: Marks) -> Structure:
    structures = [
        (parameter, concat(f"{parameter.name}:", value_structure(parameter.schema, tool, marks)))
        for parameter in parameters(tool)
    ]
    return concat("{", parameters_structure(structures, ","), "}")


def value_structure(said: dict[str, Any], tool: Tool, marks: Marks) -> Structure:
    quote = marks.quote
    if "enum" in said or "const" in said:
        values = said.get("enum", [said.get("const")])
        return one_of([ConstString(f"{quote}{v}{quote}" if isinstance(v, str) else json.dumps(v)) for v in values])
    if "anyOf" in said:
        return one_of([value_structure(one, tool, marks) for one in said["anyOf"]])
    match said.get("type"):
        case list(types):
            return one_of([value_structure(said | {"type": one}, tool, marks) for one in types])
        case "array":
            items = Repeat(value_structure(said.get("items", {}), tool, marks), ",")
            return concat("[", one_of([items, NOTHING]), "]")
        case "object" if "properties" in said:
            inner = Tool(tool.name, JsonValue(json.dumps(said), tool.arguments.must))
            return object_structure(inner, marks)
        case kind if kind in PLAIN:
            return JsonValue(json.dumps(said), tool.arguments.must)
    told = said.keys() - {"type", "description", "title", "default", "$defs", "definitions"}
    if tool.arguments.must and (told or said.get("type") != "string"):
        what = min(told, default="type")
        raise Refused(f"'{what}' cannot be enforced for the arguments of '{tool.name}' on this model", "tools")
    return concat(quote, Until(quote))
