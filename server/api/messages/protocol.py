"""Anthropic's wire shapes for a message: what a request may hold, what of it has no effect here, and the job it is."""

from collections.abc import Collection
from typing import Annotated, Any, Literal

import msgspec

from enginehouse.runtimes.contract import Chat, Job, Sampling
from enginehouse.runtimes.errors import Refused
from enginehouse.server.api.constraints import json_schema
from enginehouse.server.api.conversation import Conversation, missing
from enginehouse.server.api.sampling import Stops, TopP
from enginehouse.server.api.sealed import unsealed
from enginehouse.server.api.tools import check_tools, function_tool, short_name, tool_fields
from enginehouse.server.body import Count, Ignored, Whole, check_text, members, parse
from enginehouse.server.limits import MESSAGES, TOOLS

# Accepted and without effect: prompts are cached as far as they can be, and there is one place and speed to run in.
IGNORED = {
    "cache_control",
    "metadata",
    "service_tier",
    "inference_geo",
    "user_profile_id",
    "workspace_id",
    "diagnostics",
    "context_management",
}
# Accepted only with the value that asks for nothing; anything else is refused by name.
NEUTRAL: dict[str, tuple[Any, ...]] = {"container": (), "speed": ("standard",), "mcp_servers": ([],), "thread": ()}


class Text(msgspec.Struct, tag_field="type", tag="text", forbid_unknown_fields=True, frozen=True):
    text: str
    cache_control: Ignored = None
    citations: Ignored = None


class Thinking(msgspec.Struct, tag_field="type", tag="thinking", forbid_unknown_fields=True, frozen=True):
    thinking: str
    signature: str = ""


class RedactedThinking(
    msgspec.Struct, tag_field="type", tag="redacted_thinking", forbid_unknown_fields=True, frozen=True
):
    """Nothing of it can be read here."""

    data: Ignored = None


class ToolUse(msgspec.Struct, tag_field="type", tag="tool_use", forbid_unknown_fields=True, frozen=True):
    id: str
    name: str
    input: dict[str, Any]
    cache_control: Ignored = None
    caller: Ignored = None
    toolset_name: None = None


class ToolReference(msgspec.Struct, tag_field="type", tag="tool_reference", forbid_unknown_fields=True, frozen=True):
    """What a search for tools has found: the client sends the tool itself among `tools` from then on."""

    tool_name: str
    cache_control: Ignored = None


class Image(msgspec.Struct, tag_field="type", tag="image", forbid_unknown_fields=True, frozen=True):
    source: Ignored = None
    cache_control: Ignored = None


class Document(msgspec.Struct, tag_field="type", tag="document", forbid_unknown_fields=True, frozen=True):
    source: Ignored = None
    title: str | None = None
    context: Ignored = None
    citations: Ignored = None
    cache_control: Ignored = None


Result = Text | ToolReference | Image | Document


class ToolResult(msgspec.Struct, tag_field="type", tag="tool_result", forbid_unknown_fields=True, frozen=True):
    tool_use_id: str
    content: str | Annotated[list[Result], msgspec.Meta(max_length=MESSAGES)] = ""
    cache_control: Ignored = None
    is_error: Ignored = None
    toolset_name: None = None


Block = Text | Thinking | RedactedThinking | ToolUse | ToolResult
BLOCKS = ("text", "thinking", "redacted_thinking", "tool_use", "tool_result")
RESULTS = ("text", "tool_reference", "image", "document")


class Message(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    role: Literal["user", "assistant", "system"]
    content: str | Annotated[list[Block], msgspec.Meta(max_length=MESSAGES)]


class Tool(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The model sees every tool from the beginning, and is the only one to call it."""

    name: str
    type: Literal["custom"] | None = None
    description: str | None = None
    input_schema: dict[str, Any] = {}
    strict: bool | None = None
    cache_control: Ignored = None
    defer_loading: Ignored = None
    eager_input_streaming: Ignored = None
    allowed_callers: Ignored = None
    input_examples: Ignored = None


class ToolChoice(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    type: Literal["auto", "any", "tool", "none"] = "auto"
    name: str = ""
    disable_parallel_tool_use: bool = False


class ThinkingConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    type: Literal["enabled", "adaptive", "disabled"] = "disabled"
    budget_tokens: Count | None = None  # without effect
    display: Literal["summarized", "omitted"] | None = None


class Format(msgspec.Struct, tag_field="type", tag="json_schema", forbid_unknown_fields=True, frozen=True):
    schema: dict[str, Any]


class OutputConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: Format | None = None


class CountRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What makes up the prompt."""

    model: str
    messages: Annotated[list[Message], msgspec.Meta(min_length=1, max_length=MESSAGES)]
    system: str | Annotated[list[Text], msgspec.Meta(max_length=MESSAGES)] = ""
    tools: Annotated[list[Tool], msgspec.Meta(max_length=TOOLS)] = []
    tool_choice: ToolChoice = ToolChoice()
    thinking: ThinkingConfig = ThinkingConfig()
    output_config: OutputConfig = OutputConfig()


class MessageRequest(CountRequest, kw_only=True, forbid_unknown_fields=True, frozen=True):
    max_tokens: Count
    stream: bool = False
    stop_sequences: Stops = []
    temperature: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0
    top_p: TopP = 1.0
    top_k: Whole = 0


def read(body: bytes) -> MessageRequest:
    """A request for a message, or Refused with the field's name."""
    request = parse(body, MessageRequest, IGNORED, NEUTRAL, check_kinds)
    check_choice(request)
    return request


def read_count(body: bytes) -> CountRequest:
    request = parse(body, CountRequest, IGNORED, NEUTRAL, check_kinds)
    check_choice(request)
    return request


def check_kinds(fields: dict[str, Any]) -> None:
    """Raises Refused for tools and results of a kind that is not to be had here."""
    for index, tool in enumerate(members(fields, "tools")):
        if tool.get("type") not in (None, "custom"):
            raise Refused(f"tools of type '{tool['type']}' are not known here; only 'custom' tools", f"tools[{index}]")
    for index, message in enumerate(members(fields, "messages")):
        blocks, where = members(message, "content"), f"messages[{index}].content"
        check_text(blocks, where, BLOCKS)
        for at, block in enumerate(blocks):
            check_text(members(block, "content"), f"{where}[{at}].content", RESULTS)


def check_choice(request: CountRequest) -> None:
    choice, names = request.tool_choice, [tool.name for tool in request.tools]
    if choice.type == "tool" and choice.name not in names:
        raise Refused(
            f"'tool_choice' asks for '{choice.name}'; 'tools' has: {', '.join(names) or 'none'}", "tool_choice"
        )
    if choice.type == "any" and not names:
        raise Refused("'tool_choice' any needs 'tools'", "tool_choice")


def to_job(request: MessageRequest, id: str) -> Job:
    form = request.output_config.format
    return Job(
        id,
        request.model,
        to_chat(request),
        Sampling(
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            stop=tuple(request.stop_sequences),
            constraint=json_schema(form.schema, "output_config.format.schema") if form else None,
        ),
        request.stream,
    )


def to_chat(request: CountRequest) -> Chat:
    talk = Conversation()
    if request.system:
        text = request.system if isinstance(request.system, str) else joined(request.system)
        talk.say("system", text)
    names = {tool.name for tool in request.tools}
    for index, message in enumerate(request.messages):
        add(talk, message, f"messages[{index}].content", names)
    if not talk.messages:
        raise Refused("'messages' says nothing", "messages", "invalid_value")
    choice = request.tool_choice
    tools = request.tools if choice.type != "none" else []
    functions = [function_tool(tool.name, tool.description, tool.input_schema, tool.strict) for tool in tools]
    check_tools(functions)
    thinks = request.thinking.type != "disabled"
    options: dict[str, Any] = {"enable_thinking": thinks, "thinking": thinks}  # templates have one or the other
    if request.output_config.effort:
        options["reasoning_effort"] = request.output_config.effort
    return Chat(
        talk.asked(),
        tool_fields(functions),
        call_required=choice.type in ("any", "tool"),
        call_name=short_name(choice.name) if choice.type == "tool" else "",
        parallel_calls=not choice.disable_parallel_tool_use,
        template_options=options,
    )


def add(talk: Conversation, message: Message, where: str, tools: Collection[str]) -> None:
    """Text that stands together is one message; a tool's result is one of its own."""
    blocks = [Text(message.content)] if isinstance(message.content, str) else message.content
    texts: list[Text] = []

    def speak() -> None:
        if texts:
            talk.say(message.role, joined(texts))
            texts.clear()

    for index, block in enumerate(blocks):
        if not isinstance(block, Text):
            speak()
        match block:
            case Text():
                texts.append(block)
            case Thinking(thought, signature):
                if thought := thought or unsealed(signature):
                    talk.think(thought)
            case ToolUse(id, name, arguments):
                talk.call(id, short_name(name), msgspec.json.encode(arguments).decode())
            case ToolResult(id, content):
                result = content if isinstance(content, str) else "\n".join(seen(part, tools) for part in content)
                talk.result(id, result, f"{where}[{index}].tool_use_id")
    speak()


def seen(part: Result, tools: Collection[str]) -> str:
    """A part of a tool's result, as text: what is no text is named."""
    match part:
        case Text(text):
            return text
        case ToolReference(name):
            return f"found the tool '{name}'" + ("" if name in tools else ", which is not among the tools any more")
        case Image():
            return missing("an image")
        case Document():
            return missing(f"the document '{part.title}'" if part.title else "a document")


def joined(texts: list[Text]) -> str:
    """Clients put into blocks what does not belong to one paragraph."""
    return "\n".join(text.text for text in texts)
