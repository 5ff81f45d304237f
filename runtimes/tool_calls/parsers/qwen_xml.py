"""Qwen3-Coder: <tool_call><function=f><parameter=a>1</parameter></function></tool_call>, one for each call."""

import json
import re
from typing import Any

from enginehouse.runtimes.errors import Refused
from enginehouse.runtimes.structure import ConstString, JsonValue, Structure, Until, concat, one_of
from enginehouse.runtimes.tool_calls.parser import Parameter, ParseOptions, Tool, optional, parameters, tagged
from enginehouse.runtimes.tool_calls.scanner import Reading, Scanner

BEGIN, END = "<tool_call>", "</tool_call>"
FUNCTION, END_FUNCTION = "<function=", "</function>"
PARAMETER, END_PARAMETER = "<parameter=", "</parameter>"
RULES = {"minLength", "maxLength", "pattern", "format"}
NAME = re.compile(r"([\w.-]{1,64})>")
PARAMETER_NAME = re.compile(r"([^>\n]{1,256})>")


def recognizes(template: str) -> bool:
    return FUNCTION in template and PARAMETER in template


def read_call(scanner: Scanner, options: ParseOptions, trigger: str) -> Reading[None]:
    if trigger == BEGIN and (yield from scanner.starts((FUNCTION,))):
        trigger = BEGIN + FUNCTION
    name = (yield from scanner.match(NAME, 65)) if trigger.endswith(FUNCTION) else None
    if not name:
        yield scanner.back(trigger)
        return
    first, show = scanner.call(name[1])
    yield first
    properties = properties_of(options, name[1])
    before = "{"
    while (yield from scanner.starts((PARAMETER, END_FUNCTION))) == PARAMETER:
        parameter = yield from scanner.match(PARAMETER_NAME, 257)
        written = yield from scanner.taken(END_PARAMETER)
        if parameter:
            yield show(f"{before}{json.dumps(parameter[1])}: {value(written, properties.get(parameter[1]))}")
            before = ", "
    yield show("{}" if before == "{" else "}")
    yield from scanner.starts((END,))


def properties_of(options: ParseOptions, name: str) -> dict[str, Any]:
    schemas = (json.loads(tool.arguments.schema) for tool in options.tools if tool.name == name)
    schema: dict[str, Any] = next(schemas, {})
    found: dict[str, Any] = schema.get("properties", {})
    return found


def value(written: str, schema: Any) -> str:
    """A parameter as JSON: text stays text where the schema says so, or where it is no JSON."""
    written = written.removesuffix(END_PARAMETER).removeprefix("\n").removesuffix("\n")
    if not (isinstance(schema, dict) and schema.get("type") == "string"):
        try:
            return json.dumps(json.loads(written), ensure_ascii=False)
        except (ValueError, RecursionError):
            pass
    return json.dumps(written, ensure_ascii=False)


def after(options: ParseOptions) -> Structure:
    return one_of([concat("\n", function_structure(tool), f"\n{END}") for tool in options.tools])


def function_structure(tool: Tool) -> Structure:
    structures = [
        (parameter, concat(f"{PARAMETER}{parameter.name}>\n", value_structure(parameter, tool), "\n"))
        for parameter in parameters(tool)
    ]
    return concat(
        f"{FUNCTION}{tool.name}>\n",
        *(structure if parameter.required else optional(structure) for parameter, structure in structures),
        END_FUNCTION,
    )


def value_structure(parameter: Parameter, tool: Tool) -> Structure:
    """To the end of the parameter."""
    schema, end = parameter.schema, f"\n{END_PARAMETER}"
    if texts := [value for value in schema.get("enum", []) if isinstance(value, str)]:
        return one_of([ConstString(text + end) for text in texts])
    if schema.get("type") != "string":
        return concat(JsonValue(json.dumps(schema), tool.arguments.must), end)
    if tool.arguments.must and (rules := schema.keys() & RULES):
        raise Refused(
            f"'{min(rules)}' cannot be enforced for '{parameter.name}' of '{tool.name}' on this model", "tools"
        )
    return Until(end)


PARSER = tagged("qwen-xml", recognizes, (BEGIN, FUNCTION), read_call, after, repeats=True, marks=(BEGIN, END))
