"""The functions that a client lets a model call, whatever its API: in the shape of `Chat.tools`."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import msgspec

from enginehouse.runtimes.errors import Refused
from enginehouse.server.body import convert
from enginehouse.server.limits import TOOLS, check_json

LONGEST_NAME, DIGEST_LETTERS = 64, 8


class ToolFunction(msgspec.Struct, forbid_unknown_fields=True, frozen=True, omit_defaults=True):
    name: Annotated[str, msgspec.Meta(pattern="^[a-zA-Z0-9_-]+$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    type: Literal["function"]
    function: ToolFunction


def function_tool(name: str, description: str | None, schema: dict[str, Any] | None, strict: bool | None) -> Tool:
    """By the name that the model knows. Raises Refused for letters that no template takes."""
    function = {"name": short_name(name), "description": description, "parameters": schema, "strict": strict}
    return convert({"type": "function", "function": function}, Tool)


def check_tools(tools: Sequence[Tool]) -> None:
    """Whether the rest of a schema can be enforced is the engine's to say."""
    if len(tools) > TOOLS:
        raise Refused(f"'tools' has {len(tools)}; it takes {TOOLS} at most", "tools", "invalid_value")
    names = set[str]()
    for index, tool in enumerate(tools):
        where, parameters = f"tools[{index}].function", tool.function.parameters or {}
        if tool.function.name in names:
            raise Refused(f"two tools are named '{tool.function.name}'", f"{where}.name", "invalid_value")
        names.add(tool.function.name)
        if parameters.get("type", "object") != "object":
            raise Refused(f"'{where}.parameters' must be a schema of type 'object'", f"{where}.parameters")
        check_json(parameters, f"{where}.parameters")


def tool_fields(tools: Sequence[Tool]) -> list[dict[str, Any]] | None:
    fields = [msgspec.to_builtins(tool) for tool in tools]
    for tool in fields:
        tool["function"]["name"] = short_name(tool["function"]["name"])
    return fields or None


def short_name(name: str) -> str:
    """By which the model knows a tool: templates take no long ones."""
    if len(name) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:DIGEST_LETTERS]
    return f"{name[: LONGEST_NAME - DIGEST_LETTERS - 1]}_{digest}"


def long_names(names: Iterable[str]) -> dict[str, str]:
    """By the model's, what a client calls those that it knows by another name."""
    return {short_name(name): name for name in names if len(name) > LONGEST_NAME}
