"""OpenAI's wire shapes for chat: what a request may hold, what of it has no effect here, and the jobs it is."""

from typing import Annotated, Any, Literal

import msgspec

from enginehouse.runtimes.contract import JSON_OBJECT, Chat, Constraint, Job
from enginehouse.runtimes.errors import Refused
from enginehouse.server.api.chunks import StreamOptions, check_stream_options
from enginehouse.server.api.conversation import without_empty_answer
from enginehouse.server.api.sampling import (
    JsonFormat,
    NamedSchema,
    SamplingFields,
    TextFormat,
    TopLogprobs,
    copies,
    json_schema,
    sampling_of,
)
from enginehouse.server.api.tools import Tool, check_tools, tool_fields
from enginehouse.server.body import Count, check_text, members, parse
from enginehouse.server.limits import MESSAGES, TOOLS, check_json

# Accepted and without effect: they steer nothing in a server that runs on one's own machine.
IGNORED = {
    "user",
    "metadata",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prompt_cache_options",
}
# Accepted only with the value that asks for nothing; anything else is refused by name.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "store": (False,),
    "service_tier": ("auto", "default"),
    "modalities": (["text"],),
    "functions": (),
    "function_call": (),
    "audio": (),
    "verbosity": ("medium",),
    "web_search_options": (),
    "moderation": (),
}


class Part(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    text: str
    type: Literal["text"] = "text"


class Function(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    name: str
    arguments: str


class Call(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    id: str
    function: Function
    type: Literal["function"] = "function"
    index: int = 0


class Message(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, frozen=True):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[Part], msgspec.Meta(max_length=MESSAGES)] | None = None
    name: str | None = None
    tool_calls: Annotated[list[Call], msgspec.Meta(max_length=TOOLS)] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None


class Named(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    name: str


class OneTool(msgspec.Struct, tag_field="type", tag="function", forbid_unknown_fields=True, frozen=True):
    function: Named


class ToolReference(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    function: Named
    type: Literal["function"] = "function"


class AllowedTools(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    mode: Literal["auto", "required"]
    tools: Annotated[list[ToolReference], msgspec.Meta(min_length=1, max_length=TOOLS)]


class SomeTools(msgspec.Struct, tag_field="type", tag="allowed_tools", forbid_unknown_fields=True, frozen=True):
    allowed_tools: AllowedTools


ToolChoice = Literal["auto", "none", "required"] | OneTool | SomeTools


class Prediction(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    content: str | Annotated[list[Part], msgspec.Meta(max_length=MESSAGES)]
    type: Literal["content"] = "content"


class SchemaFormat(msgspec.Struct, tag_field="type", tag="json_schema", forbid_unknown_fields=True, frozen=True):
    json_schema: NamedSchema


class ChatRequest(SamplingFields, forbid_unknown_fields=True, frozen=True):
    model: str
    messages: Annotated[list[Message], msgspec.Meta(min_length=1, max_length=MESSAGES)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool = False
    top_logprobs: TopLogprobs = 0
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    response_format: TextFormat | JsonFormat | SchemaFormat = TextFormat()
    tools: list[Tool] = msgspec.field(default_factory=list)
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True
    prediction: Prediction | None = None
    chat_template_kwargs: dict[str, Any] = msgspec.field(default_factory=dict)  # an extension


def read(body: bytes) -> ChatRequest:
    """A request for a chat completion, or Refused with the field's name."""
    request = parse(body, ChatRequest, IGNORED, NEUTRAL, check_kinds)
    check_messages(request.messages)
    check_tools(request.tools)
    check_json(request.chat_template_kwargs, "chat_template_kwargs")
    check_stream_options(request.stream, request.stream_options)
    return request


def check_kinds(fields: dict[str, Any]) -> None:
    """Raises Refused for parts of a kind that no model here takes."""
    for index, message in enumerate(members(fields, "messages")):
        check_text(members(message, "content"), f"messages[{index}].content")


def check_messages(messages: list[Message]) -> None:
    calls = set[str | None]()
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        calls.update(call.id for call in message.tool_calls or [])
        if message.role == "tool" and message.tool_call_id not in calls:
            what = "is missing" if message.tool_call_id is None else f"'{message.tool_call_id}' is no earlier call's id"
            raise Refused(f"'{where}.tool_call_id' {what}", f"{where}.tool_call_id", "invalid_value")
        if message.refusal is not None and message.role != "assistant":
            raise Refused(f"'{where}.refusal' belongs to an assistant message", f"{where}.refusal", "invalid_value")
        if message.content is None and not message.tool_calls and message.refusal is None:
            raise Refused(f"'{where}.content' is missing", f"{where}.content", "invalid_value")
        if message.role == "user" and message.content == []:
            raise Refused(f"'{where}.content' says nothing", f"{where}.content", "invalid_value")
        if message.tool_calls and message.role != "assistant":
            raise Refused(f"'{where}.tool_calls' belongs to an assistant message", f"{where}.tool_calls")


def chat_of(request: ChatRequest) -> Chat:
    """The conversation with the tools that may be called, and whether one must be."""
    choice, tools = request.tool_choice, [] if request.tool_choice == "none" else request.tools
    required, name = choice == "required", ""
    match choice:
        case OneTool(Named(name)):
            required = True
            allowed(tools, [name], "tool_choice.function.name")
        case SomeTools(AllowedTools(mode, references)):
            required = mode == "required"
            names = [reference.function.name for reference in references]
            tools = allowed(tools, names, "tool_choice.allowed_tools.tools")
    if required and not tools:
        raise Refused("'tool_choice' asks for a call and there are no 'tools'", "tool_choice", "invalid_value")
    return Chat(
        conversation(request.messages),
        tool_fields(tools),
        required,
        name,
        request.parallel_tool_calls,
        request.chat_template_kwargs,
        request.reasoning_effort or "",
    )


def allowed(tools: list[Tool], names: list[str], where: str) -> list[Tool]:
    have, wanted = dict.fromkeys(tool.function.name for tool in tools), set(names)
    if unknown := next((name for name in names if name not in have), None):
        raise Refused(f"there is no tool '{unknown}'; have: {', '.join(have) or 'none'}", where, "invalid_value")
    return [tool for tool in tools if tool.function.name in wanted]


def to_jobs(request: ChatRequest, id: str) -> list[Job]:
    limits = [limit for limit in (request.max_completion_tokens, request.max_tokens) if limit is not None]
    if request.top_logprobs and not request.logprobs:
        raise Refused("'top_logprobs' needs 'logprobs': true", "top_logprobs", "invalid_value")
    sampling = sampling_of(
        request,
        max_tokens=min(limits, default=None),
        logprobs=request.top_logprobs if request.logprobs else None,
        constraint=constraint(request.response_format),
        prediction=predicted(request.prediction),
    )
    return copies(Job(id, request.model, chat_of(request), sampling, request.stream), request.n)


def predicted(prediction: Prediction | None) -> str:
    content = prediction.content if prediction else ""
    return content if isinstance(content, str) else "".join(part.text for part in content)


def constraint(form: TextFormat | JsonFormat | SchemaFormat) -> Constraint | None:
    match form:
        case TextFormat():
            return None
        case JsonFormat(schema):
            return JSON_OBJECT if schema is None else json_schema(schema, "response_format.schema")
        case SchemaFormat(named):
            return json_schema(named.schema, "response_format.json_schema.schema")


def conversation(messages: list[Message]) -> list[dict[str, Any]]:
    """As chat templates take it."""
    return without_empty_answer([message_fields(message) for message in messages])


def message_fields(message: Message) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(message)
    if refusal := fields.pop("refusal", None):  # to a template, what the assistant said
        fields["content"] = fields.get("content") or refusal
    if message.role == "developer":  # the newer name of the same thing; no model's template knows it
        fields["role"] = "system"
    return fields
