"""The tools of a response: as its client sends them, and as the functions that a model is shown of them."""

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import msgspec

from enginehouse.runtimes.errors import Refused
from enginehouse.server.api.tools import Tool, check_tools, function_tool, short_name
from enginehouse.server.body import Ignored, convert
from enginehouse.server.limits import TOOLS, TOOLS_BYTES

# OpenAI runs these, or its models are trained on them. Clients offer them to any model: they are left out, and the
# answer's headers say so. A choice that asks for one is refused.
HOSTED = {
    "apply_patch",
    "code_interpreter",
    "computer",
    "computer_use_preview",
    "file_search",
    "image_generation",
    "local_shell",
    "mcp",
    "programmatic_tool_calling",
    "shell",
    "tool_search",
    "web_search",
    "web_search_2025_08_26",
    "web_search_preview",
    "web_search_preview_2025_03_11",
}
PLAIN_NAMESPACE = "functions"  # Codex's word for none
Name = Annotated[str, msgspec.Meta(min_length=1)]


class FunctionTool(msgspec.Struct, tag_field="type", tag="function", forbid_unknown_fields=True, frozen=True):
    """The model sees every tool from the beginning, and is the only one to call it."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    output_schema: Ignored = None
    defer_loading: Ignored = None
    allowed_callers: Ignored = None


class FreeText(msgspec.Struct, tag_field="type", tag="text", forbid_unknown_fields=True, frozen=True):
    pass


class FreeGrammar(msgspec.Struct, tag_field="type", tag="grammar", forbid_unknown_fields=True, frozen=True):
    syntax: Literal["lark", "regex"]
    definition: str


class CustomTool(msgspec.Struct, tag_field="type", tag="custom", forbid_unknown_fields=True, frozen=True):
    """Takes one text, in whatever form."""

    name: Name
    description: str | None = None
    format: FreeText | FreeGrammar = FreeText()
    defer_loading: Ignored = None
    allowed_callers: Ignored = None


class Namespace(msgspec.Struct, tag_field="type", tag="namespace", forbid_unknown_fields=True, frozen=True):
    name: Name
    tools: Annotated[list[FunctionTool | CustomTool], msgspec.Meta(max_length=TOOLS)]
    description: str | None = None


class SentTools(msgspec.Struct, frozen=True):
    tools: list[FunctionTool | CustomTool | Namespace | None]  # None: one that is left out


class FunctionChoice(msgspec.Struct, tag_field="type", tag="function", forbid_unknown_fields=True, frozen=True):
    name: str


class CustomChoice(msgspec.Struct, tag_field="type", tag="custom", forbid_unknown_fields=True, frozen=True):
    name: str


class Allowed(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A tool by its name."""

    type: Literal["function", "custom"]
    name: str
    description: Ignored = None
    parameters: Ignored = None
    strict: Ignored = None


class AllowedChoice(msgspec.Struct, tag_field="type", tag="allowed_tools", forbid_unknown_fields=True, frozen=True):
    mode: Literal["auto", "required"]
    tools: Annotated[list[Allowed], msgspec.Meta(max_length=TOOLS)]


ToolChoice = Literal["auto", "none", "required"] | FunctionChoice | CustomChoice | AllowedChoice


class Offered(msgspec.Struct, frozen=True):
    """A function that the model is shown, and what its client calls it."""

    tool: Tool
    name: str
    namespace: str | None = None
    free: bool = False  # its one argument is the text that a custom tool takes


class Toolset(msgspec.Struct, frozen=True):
    sent: list[dict[str, Any]] = []  # but for those that are left out
    offered: dict[str, Offered] = {}  # by the function's name
    left_out: list[str] = []  # their types

    def allowed(self, choice: ToolChoice) -> tuple[list[Tool], str]:
        """What the answer may call, and the one that it must call, if there is one. Raises Refused."""
        match choice:
            case "none":
                return [], ""
            case FunctionChoice(name) | CustomChoice(name):
                wanted = [name]
            case AllowedChoice(_, tools):
                wanted = [tool.name for tool in tools]
            case _:
                wanted = []
        by_name = {one.name: function for function, one in self.offered.items()} | {name: name for name in self.offered}
        missing = sorted(set(wanted) - by_name.keys())
        if missing or (choice == "required" and not self.offered):
            have = ", ".join(self.offered) or "none"
            asked = ", ".join(missing) or "required"
            raise Refused(f"'tool_choice' asks for '{asked}'; 'tools' has: {have}", "tool_choice")
        chosen = {by_name[name] for name in wanted}
        if isinstance(choice, AllowedChoice):
            return [one.tool for name, one in self.offered.items() if name in chosen], ""
        return [one.tool for one in self.offered.values()], next(iter(chosen), "")


def toolset(sent: list[dict[str, Any]], items: Iterable[dict[str, Any]]) -> Toolset:
    """The tools of a request, and those that items of its input bring. Raises Refused with the field's name."""
    everything, left_out = list(sent), kinds_left_out(sent)
    offered = {one.tool.function.name: one for one in offered_of(sent, "tools")}
    for index, item in enumerate(items):
        if item.get("type") in ("additional_tools", "tool_search_output"):
            more = brought(item, f"input[{index}].tools")
            offered |= {one.tool.function.name: one for one in offered_of(more, f"input[{index}].tools")}
            everything += more
            left_out += kinds_left_out(more)
    if len(offered) > TOOLS:
        raise Refused(f"'tools' and 'input' have {len(offered)} tools; {TOOLS} are taken at most", "tools")
    shown = [shown_tool(tool) for tool in everything if not is_hosted(tool)]
    return Toolset(shown, offered, list(dict.fromkeys(left_out)))


def is_hosted(tool: dict[str, Any]) -> bool:
    kind = tool.get("type")
    return isinstance(kind, str) and kind in HOSTED


def kinds_left_out(sent: Sequence[dict[str, Any]]) -> list[str]:
    return [tool["type"] for tool in sent if is_hosted(tool)]


def brought(item: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """The tools of an item, held to what those of a request are held to."""
    sent = item.get("tools")
    if not isinstance(sent, list) or not all(isinstance(tool, dict) for tool in sent):
        raise Refused(f"'{where}' must be a list of objects", where, "invalid_value")
    if (size := len(msgspec.json.encode(sent))) > TOOLS_BYTES:
        raise Refused(f"'{where}' has {size} bytes; it takes {TOOLS_BYTES} at most", where, "invalid_value")
    return sent


def shown_tool(tool: dict[str, Any]) -> dict[str, Any]:
    """As it came, with the fields that every function of a response has."""
    absent = {"description": None, "parameters": None, "strict": None} if tool["type"] == "function" else {}
    return absent | tool


def offered_of(sent: list[dict[str, Any]], where: str) -> list[Offered]:
    known = [None if is_hosted(tool) else tool for tool in sent]
    try:
        tools = convert({"tools": known}, SentTools).tools
        offered = [one for tool in tools for one in flat(tool)]
        check_tools([one.tool for one in offered])
    except Refused as error:
        param = (error.param or "tools").replace("tools", where, 1)
        raise Refused(error.message.replace("'tools", f"'{where}", 1), param, error.code) from error
    return offered


def flat(tool: FunctionTool | CustomTool | Namespace | None) -> list[Offered]:
    match tool:
        case None:
            return []
        case Namespace(name, tools):
            return [one(tool, name) for tool in tools]
        case _:
            return [one(tool, None)]


def one(tool: FunctionTool | CustomTool, namespace: str | None) -> Offered:
    called = function_name(namespace, tool.name)
    if isinstance(tool, CustomTool):
        return Offered(free_tool(called, tool), tool.name, namespace, free=True)
    return Offered(function_tool(called, tool.description, tool.parameters, tool.strict), tool.name, namespace)


def function_name(namespace: str | None, name: str) -> str:
    """By which the model knows it: templates have one level of names, and take no long ones."""
    if namespace not in (None, "", PLAIN_NAMESPACE):
        name = f"{namespace}{'' if namespace.endswith('_') else '__'}{name}"
    return short_name(name)


def free_tool(name: str, tool: CustomTool) -> Tool:
    """A function with one argument, the text. What its grammar says of that is told in words: of grammars, only JSON
    schemas reach into a call's arguments, and so does a regex, as a pattern, with engines that enforce those."""
    text: dict[str, Any] = {"type": "string", "description": "the whole text that the tool takes, as it is"}
    if isinstance(tool.format, FreeGrammar):
        text["description"] += f". It must match this {tool.format.syntax} grammar:\n{tool.format.definition}"
        if tool.format.syntax == "regex":
            text["pattern"] = f"^(?:{tool.format.definition})$"
    schema = {"type": "object", "properties": {"input": text}, "required": ["input"]}
    return function_tool(name, tool.description, schema, None)
