"""Tool calls in Python's syntax, f(a=1, b="x"): read, and as a structure."""

import ast
import json
import re
from typing import Any

from enginehouse.runtimes.structure import ConstString, JsonValue, Structure, concat, one_of
from enginehouse.runtimes.tool_calls.parser import Tool, parameters, parameters_structure
from enginehouse.runtimes.tool_calls.scanner import Brackets, Reading, Scanner

CONSTANTS = {"true": True, "false": False, "null": None}
OPEN = re.compile(r"\s{0,16}([A-Za-z_][\w.-]{0,63})\(")
OPEN_LENGTH = 16 + 64 + 1


def read_call(scanner: Scanner, before: str) -> Reading[bool]:
    """One call, shown when it is complete: Python's literals must be read before JSON can be written. What is no call
    is text, with what led to it."""
    head = yield from scanner.match(OPEN, OPEN_LENGTH)
    if not head:
        yield scanner.back(before)
        return False
    written: list[str] = []
    parens = Brackets(1, "([{", ")]}", "\"'")
    while (end := parens.close(scanner.held)) < 0 and not scanner.ended:
        written.append(scanner.held)
        scanner.held = ""
        yield None
    written.append(scanner.held if end < 0 else scanner.held[:end])
    scanner.skip(len(written[-1]))
    arguments = as_json("".join(written))
    if arguments is None:
        yield scanner.back("".join((before, head[0], *written)))
        return False
    first, show = scanner.call(head[1])
    yield first
    yield show(arguments)
    return True


def as_json(written: str) -> str | None:
    """Arguments and the parenthesis after them, as JSON; None where they are not all named literals."""
    try:
        call = ast.parse(f"f({written}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            return None
        return json.dumps(
            {str(argument.arg): literal(argument.value) for argument in call.keywords}, ensure_ascii=False
        )
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None


def literal(node: ast.expr) -> Any:
    """JSON's true, false and null are understood as well."""
    match node:
        case ast.Name(id=name) if name in CONSTANTS:
            return CONSTANTS[name]
        case ast.List(elts=parts) | ast.Tuple(elts=parts):
            return [literal(part) for part in parts]
        case ast.Dict(keys=keys, values=values):
            return {literal(key): literal(value) for key, value in zip(keys, values, strict=True) if key}
    value = ast.literal_eval(node)
    if isinstance(value, str):  # JSON writes letters beyond 16 bits as two escapes
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value


def call_structure(tool: Tool) -> Structure:
    """What follows `f(`."""
    structures = [
        (parameter, concat(f"{parameter.name}=", value_structure(parameter.schema, tool)))
        for parameter in parameters(tool)
    ]
    return concat(parameters_structure(structures, ", "), ")")


def value_structure(schema: dict[str, Any], tool: Tool) -> Structure:
    """As Python writes it; inside lists and objects JSON's words are as good."""
    if "enum" in schema or "const" in schema:
        return one_of([ConstString(python(value)) for value in schema.get("enum", [schema.get("const")])])
    if isinstance(schema.get("type"), list):
        return one_of([value_structure(schema | {"type": kind}, tool) for kind in schema["type"]])
    if schema.get("type") == "boolean":
        return one_of([ConstString("True"), ConstString("False")])
    if schema.get("type") == "null":
        return ConstString("None")
    return JsonValue(json.dumps(schema), tool.arguments.must)


def python(value: Any) -> str:
    """Strings as JSON has them, which Python reads alike."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
