"""OpenAI's wire shapes for a response: what a request may hold, what of it has no effect here, and the job it is."""

import secrets
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec

from enginehouse.runtimes.contract import JSON_OBJECT, Chat, Constraint, Job, Sampling
from enginehouse.runtimes.errors import Refused
from enginehouse.server.api.constraints import json_schema
from enginehouse.server.api.conversation import Conversation, missing
from enginehouse.server.api.responses.custom_input import free_arguments
from enginehouse.server.api.responses.tools import (
    AllowedChoice,
    CustomChoice,
    FunctionChoice,
    ToolChoice,
    Toolset,
    function_name,
    toolset,
)
from enginehouse.server.api.sampling import (
    JsonFormat,
    NamedSchema,
    Penalty,
    Temperature,
    TextFormat,
    TopLogprobs,
    TopP,
)
from enginehouse.server.api.sealed import unsealed
from enginehouse.server.api.tools import tool_fields
from enginehouse.server.body import Count, Ignored, Metadata, check_text, convert, members, parse
from enginehouse.server.limits import MESSAGES, TOOLS

# Accepted and without effect: no tool of a server's own runs here, and every prompt is cached as far as it can be.
IGNORED = {
    "user",
    "prompt_cache_retention",
    "prompt_cache_options",
    "client_metadata",
}
# Accepted only with the value that asks for nothing; anything else is refused by name.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "background_options": (),
    "service_tier": ("auto", "default"),
    "prompt": (),
    "context_management": (),
    "moderation": (),
    "access_programs": (),
    "image": (),
}
PREFIXES = {
    "message": "msg",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
    "reasoning": "rs",
    "additional_tools": "at",
    "compaction": "cmp",
    "tool_search_call": "tsc",
    "tool_search_output": "tso",
}
TEXTS = ("input_text", "output_text", "refusal", "reasoning_text", "summary_text", "text")
# What a tool may give and no model here can see: the text that stands for it says what is missing.
UNSEEN = {"input_image": "an image", "input_file": "a file"}
BEFORE = "A summary of our conversation until now:"
WITHOUT_THOUGHT = ("none", "minimal")  # efforts

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class Part(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    type: Literal["input_text", "output_text", "refusal", "reasoning_text", "summary_text", "text"]
    text: str = ""
    refusal: str = ""
    annotations: Ignored = None
    logprobs: Ignored = None
    prompt_cache_breakpoint: Ignored = None


class ResultPart(Part, forbid_unknown_fields=True, frozen=True):
    type: Literal["input_text", "output_text", "refusal", "text", "input_image", "input_file"]  # type: ignore[assignment]
    image_url: Ignored = None
    file_url: Ignored = None
    file_data: Ignored = None
    file_id: Ignored = None
    filename: Ignored = None
    detail: Ignored = None


class Stored(msgspec.Struct, tag_field="type", kw_only=True, forbid_unknown_fields=True, frozen=True):
    """What an item bears that was part of a response, and that clients send back with it."""

    id: str | None = None
    status: Ignored = None
    created_by: Ignored = None


class MessageItem(Stored, tag="message", forbid_unknown_fields=True, frozen=True):
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[Part]
    phase: Ignored = None  # whether it was said on the way or at the end


class CallItem(Stored, tag="function_call", forbid_unknown_fields=True, frozen=True):
    call_id: str
    name: str
    arguments: str
    namespace: str | None = None
    caller: None = None


class ResultItem(Stored, tag="function_call_output", forbid_unknown_fields=True, frozen=True):
    call_id: str
    output: str | list[ResultPart]
    caller: None = None


class CustomCallItem(Stored, tag="custom_tool_call", forbid_unknown_fields=True, frozen=True):
    call_id: str
    name: str
    input: str
    namespace: str | None = None
    caller: None = None


class CustomResultItem(Stored, tag="custom_tool_call_output", forbid_unknown_fields=True, frozen=True):
    call_id: str
    output: str | list[ResultPart]
    caller: None = None


class ToolsItem(Stored, tag="additional_tools", forbid_unknown_fields=True, frozen=True):
    tools: list[dict[str, Any]]
    role: Literal["developer"] = "developer"


class SearchItem(Stored, tag="tool_search_call", forbid_unknown_fields=True, frozen=True):
    """For tools that are deferred."""

    arguments: Any = None
    call_id: str | None = None
    execution: Ignored = None


class FoundItem(Stored, tag="tool_search_output", forbid_unknown_fields=True, frozen=True):
    """The tools that such a search brought: the model has them from here on."""

    tools: list[dict[str, Any]]
    call_id: str | None = None
    execution: Ignored = None


class ReasoningItem(Stored, tag="reasoning", forbid_unknown_fields=True, frozen=True):
    summary: list[Part] = []
    content: list[Part] | None = None
    encrypted_content: str | None = None


Call = CallItem | CustomCallItem | SearchItem


class CompactionItem(Stored, tag="compaction", forbid_unknown_fields=True, frozen=True):
    """What stands for all that was said before it; see compaction.py."""

    encrypted_content: str


Item = CompactionItem | MessageItem | Call | ResultItem | CustomResultItem | FoundItem | ReasoningItem | ToolsItem


class Items(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    input: list[Item]


class Sent(msgspec.Struct, frozen=True):
    """What of any item is looked at before it is known which it is."""

    type: str | None = None
    id: str | None = None
    role: str | None = None


class SentItems(msgspec.Struct, frozen=True):
    input: list[Sent]


class SchemaFormat(NamedSchema, tag_field="type", tag="json_schema", forbid_unknown_fields=True, frozen=True):
    pass


class TextConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    format: TextFormat | JsonFormat | SchemaFormat = TextFormat()
    verbosity: Literal["low", "medium", "high"] | None = None  # without effect


class Reasoning(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None  # without effect: the thought itself is shown
    generate_summary: Literal["auto", "concise", "detailed"] | None = None  # its older name
    context: Literal["auto", "current_turn", "all_turns"] | None = None  # without effect: the template decides
    mode: Literal["standard"] | None = None


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    include_obfuscation: bool = False  # without effect: there is none


class ConversationId(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    id: str


class ResponseRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    model: str
    input: str | Annotated[list[dict[str, Any]], msgspec.Meta(max_length=MESSAGES)]
    instructions: str | None = None
    previous_response_id: str | None = None
    conversation: str | ConversationId | None = None
    truncation: Literal["auto", "disabled"] | None = None
    store: bool = True
    background: bool = False
    stream: bool = False
    stream_options: StreamOptions | None = None
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] = []
    max_output_tokens: Count | None = None
    temperature: Temperature = 1.0
    top_p: TopP = 1.0
    top_logprobs: TopLogprobs | None = None
    text: TextConfig = TextConfig()
    reasoning: Reasoning = Reasoning()
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    tools: Annotated[list[dict[str, Any]], msgspec.Meta(max_length=TOOLS)] = []
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True
    max_tool_calls: Count | None = None  # of tools that the server runs: there are none
    metadata: Metadata = {}
    safety_identifier: str | None = None  # this one and the next are shown again, and else without effect
    prompt_cache_key: str | None = None


def read(body: bytes) -> ResponseRequest:
    """A request for a response, or Refused with the field's name."""
    request = parse(body, ResponseRequest, IGNORED, NEUTRAL, check_kinds)
    if request.background and not request.store:
        raise Refused(
            "'background' wants 'store': nobody could come back to the response", "background", "invalid_value"
        )
    if request.conversation and request.previous_response_id:
        message = "'conversation' and 'previous_response_id' both say what came before; send one of them"
        raise Refused(message, "conversation", "invalid_value")
    return request


def conversation_id(request: ResponseRequest) -> str | None:
    conversation = request.conversation
    return conversation.id if isinstance(conversation, ConversationId) else conversation


def check_kinds(fields: dict[str, Any]) -> None:
    """Raises Refused for content of a kind that is not to be had here."""
    for index, item in enumerate(members(fields, "input")):
        check_text(members(item, "content"), f"input[{index}].content", TEXTS)
        check_text(members(item, "output"), f"input[{index}].output", (*TEXTS, *UNSEEN))


def items_of(given: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The input as items in full, each with an id, as they are listed and stored."""
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    convert({"input": given}, SentItems)
    return [item_of(item, f"input[{index}]") for index, item in enumerate(given)]


def item_of(item: dict[str, Any], where: str) -> dict[str, Any]:
    kind = item.get("type") or ("message" if "role" in item else "item_reference")
    item = item | {"type": kind}
    if kind == "item_reference" and not item.get("id"):
        raise Refused(f"'{where}' has no type, and no id to find one by", where, "invalid_value")
    if not item.get("id"):
        item["id"] = f"{PREFIXES.get(kind, 'item')}_{secrets.token_hex(12)}"
    if kind in PREFIXES and not item.get("status"):
        item["status"] = "completed"
    if kind == "message" and isinstance(item.get("content"), str):
        spoken = item.get("role") == "assistant"
        part = {"type": "output_text", "annotations": []} if spoken else {"type": "input_text"}
        item["content"] = [part | {"text": item["content"]}]
    return item


def to_job(
    request: ResponseRequest,
    history: list[dict[str, Any]],
    given: list[dict[str, Any]],
    id: str,
    tools: Toolset | None = None,
) -> Job:
    """`tools`: those of all this, where they are known."""
    talk = Conversation()
    if request.instructions:
        talk.say("system", request.instructions)
    for item in remembered(history):
        add(talk, item, "previous_response_id")
    for index, item in enumerate(convert({"input": given}, Items, check_kinds).input):
        add(talk, item, f"input[{index}]")
    if not talk.messages:
        raise Refused("'input' is empty", "input", "invalid_value")
    choice = request.tool_choice
    tools = tools or toolset(request.tools, [*history, *given])
    allowed, named = tools.allowed(choice)
    return Job(
        id,
        request.model,
        Chat(
            talk.asked(),
            tool_fields(allowed),
            call_required=choice == "required"
            or isinstance(choice, FunctionChoice | CustomChoice)
            or (isinstance(choice, AllowedChoice) and choice.mode == "required"),
            call_name=named,
            parallel_calls=request.parallel_tool_calls,
            template_options=effort_options(request.reasoning.effort),
        ),
        Sampling(
            max_tokens=request.max_output_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            presence_penalty=request.presence_penalty,
            frequency_penalty=request.frequency_penalty,
            logprobs=logprobs(request),
            constraint=constraint(request.text.format),
        ),
        request.stream or request.background,
    )


def remembered(history: list[dict[str, Any]]) -> list[Item]:
    """Stored items, which an older version may have taken with fields that are refused now."""
    try:
        return convert({"input": history}, Items).input
    except Refused as error:
        message = f"an item of an earlier response cannot be gone on from: {error.message}"
        raise Refused(message, "previous_response_id", error.code) from error


def add(talk: Conversation, item: Item, where: str) -> None:
    match item:
        case MessageItem(role, content):
            talk.say("system" if role == "developer" else role, text_of(content))
        case CallItem(call_id, name, arguments, namespace):
            talk.call(call_id, function_name(namespace, name), arguments)
        case CustomCallItem(call_id, name, text, namespace):
            talk.call(call_id, function_name(namespace, name), free_arguments(text))
        case ResultItem(call_id, output) | CustomResultItem(call_id, output):
            talk.result(call_id, text_of(output), f"{where}.call_id")
        case ReasoningItem(summary, content, sealed):
            if thought := text_of(content or ()) or unsealed(sealed) or text_of(summary):
                talk.think(thought)
        case CompactionItem(summary):
            if not (said := unsealed(summary)):
                message = f"'{where}.encrypted_content' is no summary that was made here"
                raise Refused(message, f"{where}.encrypted_content", "invalid_value")
            talk.say("user", f"{BEFORE}\n\n{said}")
        case SearchItem(arguments, call_id) if call_id:
            talk.call(call_id, "tool_search", msgspec.json.encode(arguments or {}).decode())
        case FoundItem(tools, call_id) if call_id:
            names = ", ".join(str(tool.get("name", tool.get("type"))) for tool in tools)
            talk.result(call_id, f"found: {names or 'nothing'}", f"{where}.call_id")
        case ToolsItem() | SearchItem() | FoundItem():  # without an id nothing was called
            pass  # they are among the tools


def text_of(content: str | Sequence[Part]) -> str:
    if isinstance(content, str):
        return content
    return "".join(missing(UNSEEN[part.type]) if part.type in UNSEEN else part.text or part.refusal for part in content)


def effort_options(effort: Effort | None) -> dict[str, Any]:
    """Variables for the template, as far as it has them: agents send an effort to every model."""
    if effort is None:
        return {}
    thinks = effort not in WITHOUT_THOUGHT
    return {"enable_thinking": thinks, "thinking": thinks, "reasoning_effort": effort}


def logprobs(request: ResponseRequest) -> int | None:
    if request.top_logprobs is None and "message.output_text.logprobs" not in request.include:
        return None
    return request.top_logprobs or 0


def constraint(form: TextFormat | JsonFormat | SchemaFormat) -> Constraint | None:
    match form:
        case TextFormat():
            return None
        case JsonFormat(schema):
            return JSON_OBJECT if schema is None else json_schema(schema, "text.format.schema")
        case SchemaFormat():
            return json_schema(form.schema, "text.format.schema")
