"""Qwen3-Coder: <tool_call><function=f><parameter=a>1</parameter></function></tool_call>, one for each call."""

import json
import re
from typing import Any

from enginehouse.runtimes.errors import Refused
from enginehouse.runtimes.structure import ConstString, JsonValue, Structure, Until, concat, one_of
from enginehouse.runtimes.tool_calls.format import Setting, Tool, Word, optional, tagged, words
from enginehouse.runtimes.tool_calls.scanner import Incoming, Reading

BEGIN, END = "<tool_call>", "</tool_call>"
FUNCTION, END_FUNCTION = "<function=", "</function>"
PARAMETER, END_PARAMETER = "<parameter=", "</parameter>"
RULES = {"minLength", "maxLength", "pattern", "format"}
NAME = re.compile(r"([\w.-]{1,64})>")
WORD = re.compile(r"([^>\n]{1,256})>")


def recognizes(template: str) -> bool:
    return FUNCTION in template and PARAMETER in template


def read_call(incoming: Incoming, setting: Setting, trigger: str) -> Reading[None]:
    if trigger == BEGIN and (yield from incoming.starts((FUNCTION,))):
        trigger = BEGIN + FUNCTION
    name = (yield from incoming.match(NAME, 65)) if trigger.endswith(FUNCTION) else None
    if not name:
        yield incoming.back(trigger)
        return
    first, show = incoming.call(name[1])
    yield first
    properties = properties_of(setting, name[1])
    before = "{"
    while (yield from incoming.starts((PARAMETER, END_FUNCTION))) == PARAMETER:
        word = yield from incoming.match(WORD, 257)
        written = yield from incoming.taken(END_PARAMETER)
        if word:
            yield show(f"{before}{json.dumps(word[1])}: {value(written, properties.get(word[1]))}")
            before = ", "
    yield show("{}" if before == "{" else "}")
    yield from incoming.starts((END,))


def properties_of(setting: Setting, name: str) -> dict[str, Any]:
    schemas = (json.loads(tool.arguments.schema) for tool in setting.tools if tool.name == name)
    schema: dict[str, Any] = next(schemas, {})
    found: dict[str, Any] = schema.get("properties", {})
    return found


def value(written: str, said: Any) -> str:
    """A parameter as JSON: text stays text where the schema says so, or where it is no JSON."""
    written = written.removesuffix(END_PARAMETER).removeprefix("\n").removesuffix("\n")
    if not (isinstance(said, dict) and said.get("type") == "string"):
        try:
            return json.dumps(json.loads(written), ensure_ascii=False)
        except ValueError:
            pass
    return json.dumps(written, ensure_ascii=False)


def after(setting: Setting) -> Structure:
    return one_of([concat("\n", function_structure(tool), f"\n{END}") for tool in setting.tools])


def function_structure(tool: Tool) -> Structure:
    structures = [
        (word, concat(f"{PARAMETER}{word.name}>\n", value_structure(word, tool), "\n")) for word in words(tool)
    ]
    return concat(
        f"{FUNCTION}{tool.name}>\n",
        *(structure if word.required else optional(structure) for word, structure in structures),
        END_FUNCTION,
    )


def value_structure(word: Word, tool: Tool) -> Structure:
    """To the end of the parameter."""
    said, end = word.schema, f"\n{END_PARAMETER}"
    if texts := [value for value in said.get("enum", []) if isinstance(value, str)]:
        return one_of([ConstString(text + end) for text in texts])
    if said.get("type") != "string":
        return concat(JsonValue(json.dumps(said), tool.arguments.must), end)
    if tool.arguments.must and (rules := said.keys() & RULES):
        raise Refused(f"'{min(rules)}' cannot be enforced for '{word.name}' of '{tool.name}' on this model", "tools")
    return Until(end)


FORMAT = tagged("qwen-xml", recognizes, (BEGIN, FUNCTION), read_call, after, repeats=True, marks=(BEGIN, END))
