"""OpenAI's wire shapes for chat: what a request may hold, what of it has no effect here, and the jobs it is."""

from typing import Annotated, Any, Literal

import msgspec

from enginehouse.runtimes.contract import JSON_OBJECT, Chat, Constraint, Job
from enginehouse.runtimes.errors import Refused
from enginehouse.server.api.chat import legacy
from enginehouse.server.api.chunks import StreamOptions, check_stream_options, wants_counts
from enginehouse.server.api.constraints import constraint_of, json_schema
from enginehouse.server.api.conversation import without_empty_answer
from enginehouse.server.api.sampling import (
    Bound,
    JsonFormat,
    NamedSchema,
    SamplingFields,
    TextFormat,
    TopLogprobs,
    copies,
    limit,
    sampling_of,
)
from enginehouse.server.api.tools import Tool, ToolFunction, check_tools, short_name, tool_fields
from enginehouse.server.body import Metadata, check_text, members, parse
from enginehouse.server.limits import MESSAGES, TOOLS, check_json

# Accepted and without effect: they steer nothing in a server that runs on one's own machine.
IGNORED = {
    "user",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prompt_cache_options",
}
# Accepted only with the value that asks for nothing; anything else is refused by name.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "service_tier": ("auto", "default"),
    "modalities": (["text"],),
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
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Annotated[list[Part], msgspec.Meta(max_length=MESSAGES)] | None = None
    name: str | None = None
    tool_calls: Annotated[list[Call], msgspec.Meta(max_length=TOOLS)] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: Function | None = None


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


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
ToolChoice = Literal["auto", "none", "required"] | OneTool | SomeTools


class Prediction(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    content: str | Annotated[list[Part], msgspec.Meta(max_length=MESSAGES)]
    type: Literal["content"] = "content"


class Reasoning(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """OpenRouter's."""

    effort: Effort | None = None
    enabled: bool | None = None
    exclude: bool = False  # thoughts are not shown
    max_tokens: int | None = None


class SchemaFormat(msgspec.Struct, tag_field="type", tag="json_schema", forbid_unknown_fields=True, frozen=True):
    json_schema: NamedSchema


class ChatRequest(SamplingFields, forbid_unknown_fields=True, frozen=True):
    model: str
    messages: Annotated[list[Message], msgspec.Meta(min_length=1, max_length=MESSAGES)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    store: bool = False
    # Of what is stored; else without effect and not even read.
    metadata: msgspec.Raw = msgspec.field(default_factory=lambda: msgspec.Raw(b"{}"))
    return_progress: bool = False  # an extension of llama.cpp's: how far the prompt is read
    max_tokens: Bound | None = None
    max_completion_tokens: Bound | None = None
    logprobs: bool = False
    top_logprobs: TopLogprobs = 0
    reasoning_effort: Effort | None = None
    reasoning: Reasoning = Reasoning()
    response_format: TextFormat | JsonFormat | SchemaFormat = TextFormat()
    tools: list[Tool] = msgspec.field(default_factory=list)
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True
    prediction: Prediction | None = None
    chat_template_kwargs: dict[str, Any] = msgspec.field(default_factory=dict)  # an extension
    continue_final_message: bool | None = None  # vLLM's, this one and the next; None: of the assistant's own message
    add_generation_prompt: bool | None = None
    functions: Annotated[list[ToolFunction], msgspec.Meta(max_length=TOOLS)] = msgspec.field(default_factory=list)
    function_call: Literal["auto", "none"] | Named | None = None


def read(body: bytes) -> ChatRequest:
    """A request for a chat completion, or Refused with the field's name."""
    request = parse(body, ChatRequest, IGNORED, NEUTRAL, check_kinds)
    if request.store:
        metadata_of(request)
    check_messages(request.messages)
    if request.functions or request.function_call:
        request = with_tools(request)
    else:
        check_tools(request.tools)
    check_json(request.chat_template_kwargs, "chat_template_kwargs")
    check_stream_options(request.stream, request.stream_options)
    if request.return_progress and not request.stream:
        raise Refused("'return_progress' is for streams; send 'stream': true", "return_progress", "invalid_value")
    return request


def metadata_of(request: ChatRequest) -> dict[str, str]:
    try:
        return msgspec.json.decode(request.metadata, type=Metadata)
    except msgspec.DecodeError as error:
        raise Refused(f"'metadata': {error}", "metadata", "invalid_value") from error


def with_tools(request: ChatRequest) -> ChatRequest:
    """Of a request in the words of before there were tools."""
    if request.tools or request.tool_choice != "auto":
        raise Refused("'functions' and 'tools' are one thing; send 'tools'", "functions", "invalid_value")
    call, tools = request.function_call, [Tool("function", function) for function in request.functions]
    choice = OneTool(call) if isinstance(call, Named) else call or "auto"
    request = msgspec.structs.replace(request, tools=tools, tool_choice=choice, parallel_tool_calls=False)
    try:
        check_tools(tools)
        chat_of(request)
    except Refused as error:
        raise legacy.named(error) from error
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
        if message.content is None and not (message.tool_calls or message.function_call) and message.refusal is None:
            raise Refused(f"'{where}.content' is missing", f"{where}.content", "invalid_value")
        if message.function_call and message.role != "assistant":
            raise Refused(f"'{where}.function_call' belongs to an assistant message", f"{where}.function_call")
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
        short_name(name),
        request.parallel_tool_calls,
        request.chat_template_kwargs,
        effort_of(request),
        ending_of(request.messages, request.continue_final_message, request.add_generation_prompt),
    )


def effort_of(request: ChatRequest) -> str:
    asked, further = request.reasoning, request.reasoning.effort
    if asked.max_tokens is not None:
        message = (
            "'reasoning.max_tokens': how long a thought is cannot be bounded here; bound the answer, or the effort"
        )
        raise Refused(message, "reasoning.max_tokens", "unsupported_parameter")
    if further and request.reasoning_effort and further != request.reasoning_effort:
        raise Refused("'reasoning.effort' is another 'reasoning_effort'; send one of them", "reasoning.effort")
    effort = request.reasoning_effort or further or ""
    if asked.enabled is None:
        return effort
    if effort and asked.enabled == (effort == "none"):
        raise Refused(f"'reasoning.enabled' does not go with effort '{effort}'", "reasoning.enabled", "invalid_value")
    return effort or ("medium" if asked.enabled else "none")


def ending_of(messages: list[Message], goes_on: bool | None, begins: bool | None) -> Literal["auto", "new", "none"]:
    """Where the prompt ends."""
    if goes_on:
        last = messages[-1]
        if begins or last.role != "assistant" or last.tool_calls or not last.content:
            what = "needs a last message of the assistant's, and no 'add_generation_prompt'"
            raise Refused(f"'continue_final_message' {what}", "continue_final_message", "invalid_value")
        return "auto"
    if begins is False:
        return "none"
    return "auto" if goes_on is None and begins is None else "new"


def allowed(tools: list[Tool], names: list[str], where: str) -> list[Tool]:
    have, wanted = dict.fromkeys(tool.function.name for tool in tools), set(names)
    if unknown := next((name for name in names if name not in have), None):
        raise Refused(f"there is no tool '{unknown}'; have: {', '.join(have) or 'none'}", where, "invalid_value")
    return [tool for tool in tools if tool.function.name in wanted]


def to_jobs(request: ChatRequest, id: str) -> list[Job]:
    bounds = limit(request.max_completion_tokens, "max_completion_tokens"), limit(request.max_tokens, "max_tokens")
    if request.top_logprobs and not request.logprobs:
        raise Refused("'top_logprobs' needs 'logprobs': true", "top_logprobs", "invalid_value")
    sampling = sampling_of(
        request,
        max_tokens=min([bound for bound in bounds if bound is not None], default=None),
        logprobs=request.top_logprobs if request.logprobs else None,
        constraint=constraint(request)[1],
        prediction=predicted(request.prediction),
    )
    job = Job(
        id, request.model, chat_of(request), sampling, request.stream, counted=wants_counts(request.stream_options)
    )
    return copies(job, request.n)


def predicted(prediction: Prediction | None) -> str:
    content = prediction.content if prediction else ""
    return content if isinstance(content, str) else "".join(part.text for part in content)


def constraint(request: ChatRequest) -> tuple[str, Constraint | None]:
    """With the field that asks for it."""
    match request.response_format:
        case TextFormat():
            return constraint_of(request)
        case JsonFormat(schema):
            form = JSON_OBJECT if schema is None else json_schema(schema, "response_format.schema")
        case SchemaFormat(named):
            form = json_schema(named.schema, "response_format.json_schema.schema")
    return constraint_of(request, ("response_format", form))


def conversation(messages: list[Message]) -> list[dict[str, Any]]:
    """As chat templates take it."""
    whole = legacy.with_calls([message_fields(message) for message in messages])
    for call in (call for message in whole for call in message.get("tool_calls", ())):
        call["function"]["name"] = short_name(call["function"]["name"])
    return without_empty_answer(whole)


def message_fields(message: Message) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(message)
    if refusal := fields.pop("refusal", None):  # to a template, what the assistant said
        fields["content"] = fields.get("content") or refusal
    if message.role == "developer":  # the newer name of the same thing; no model's template knows it
        fields["role"] = "system"
    return fields
