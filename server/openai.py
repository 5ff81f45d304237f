"""OpenAI's wire shapes for chat: what a request may hold, and what of it has no effect here."""

import re
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from runtimes.contract import JSON_OBJECT, Chat, Constraint, Job, JsonSchema, Refused, Sampling
from server.choices import MOST

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
    "prediction": (),
    "verbosity": ("medium",),
    "web_search_options": (),
    "moderation": (),
}
# Fields that Sampling has under the same names.
SAMPLED = (
    "min_tokens", "ignore_eos", "temperature", "top_p", "top_k", "min_p", "seed", "frequency_penalty",
    "presence_penalty", "repetition_penalty", "logit_bias",
)  # fmt: skip
PLACE = re.compile(r"^(.*?)(?: - at (?:`key` in )?`\$\.?(.*)`)?$", re.DOTALL)
UNKNOWN = re.compile(r"^Object contains unknown field `(.*)`", re.DOTALL)

T = TypeVar("T")
LARGEST = 2**31 - 1  # what engines count with
Count = Annotated[int, msgspec.Meta(ge=1, le=LARGEST)]
Whole = Annotated[int, msgspec.Meta(ge=0, le=LARGEST)]
Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]


class Part(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    text: str
    type: Literal["text"] = "text"


class Function(msgspec.Struct, frozen=True):
    name: str
    arguments: str


class Call(msgspec.Struct, frozen=True):
    id: str
    function: Function
    type: Literal["function"] = "function"
    index: int = 0


class Message(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, frozen=True):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    refusal: None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class ToolFunction(msgspec.Struct, frozen=True, omit_defaults=True):
    name: Annotated[str, msgspec.Meta(pattern="^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, frozen=True):
    type: Literal["function"]
    function: ToolFunction


class Named(msgspec.Struct, frozen=True):
    name: str


class OneTool(msgspec.Struct, tag_field="type", tag="function", frozen=True):
    function: Named


class ToolReference(msgspec.Struct, frozen=True):
    function: Named
    type: Literal["function"] = "function"


class AllowedTools(msgspec.Struct, frozen=True):
    mode: Literal["auto", "required"]
    tools: Annotated[list[ToolReference], msgspec.Meta(min_length=1)]


class SomeTools(msgspec.Struct, tag_field="type", tag="allowed_tools", frozen=True):
    allowed_tools: AllowedTools


ToolChoice = Literal["auto", "none", "required"] | OneTool | SomeTools


class TextFormat(msgspec.Struct, tag_field="type", tag="text", frozen=True):
    pass


class JsonFormat(msgspec.Struct, tag_field="type", tag="json_object", frozen=True):
    pass


class NamedSchema(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    name: str
    schema: dict[str, Any] = {}
    description: str | None = None
    strict: bool | None = None  # here a schema is always enforced to the letter


class SchemaFormat(msgspec.Struct, tag_field="type", tag="json_schema", forbid_unknown_fields=True, frozen=True):
    json_schema: NamedSchema


class ChatRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    model: str
    messages: Annotated[list[Message], msgspec.Meta(min_length=1)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] = 1.0
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    seed: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: str | list[str] = []
    frequency_penalty: Penalty = 0.0
    presence_penalty: Penalty = 0.0
    logit_bias: dict[Whole, Annotated[float, msgspec.Meta(ge=-100, le=100)]] = {}
    logprobs: bool = False
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=20)] = 0
    n: Annotated[int, msgspec.Meta(ge=1, le=MOST)] = 1
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    response_format: TextFormat | JsonFormat | SchemaFormat = TextFormat()
    tools: list[Tool] = []
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True
    # Extensions, named as other servers name them.
    top_k: Whole = 0
    min_p: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, msgspec.Meta(ge=0.01, le=100)] = 1.0
    min_tokens: Whole = 0
    ignore_eos: bool = False
    stop_token_ids: list[Whole] = []
    chat_template_kwargs: dict[str, Any] = {}


def decode(body: bytes, to: type[T]) -> T:
    """A request, or Refused with the field's name; null is as good as not there."""
    return convert({key: value for key, value in json_object(body).items() if value is not None}, to)


def json_object(body: bytes) -> dict[str, Any]:
    try:
        raw = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(f"the body is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise Refused("the body must be a JSON object")
    return raw


def convert(fields: dict[str, Any], to: type[T]) -> T:
    try:
        return msgspec.convert(fields, to, str_keys=True)
    except msgspec.ValidationError as error:
        raise refusal(str(error)) from error


def read(body: bytes) -> ChatRequest:
    """A request for a chat completion, or Refused with the field's name."""
    fields = accepted(json_object(body), IGNORED, NEUTRAL)
    check_parts(fields.get("messages"))
    request = convert(fields, ChatRequest)
    check_messages(request.messages)
    check_tools(request.tools)
    check_stream_options(request.stream, request.stream_options)
    return request


def accepted(raw: dict[str, Any], ignored: Collection[str], neutral: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    """The fields that say something; null is as good as not there. Raises Refused for those that ask for what is not
    to be had here."""
    fields = {key: value for key, value in raw.items() if value is not None and key not in ignored}
    for key in fields.keys() & neutral.keys():
        value = fields.pop(key)
        if not any(value == allowed and type(value) is type(allowed) for allowed in neutral[key]):
            allowed = " or ".join(msgspec.json.encode(value).decode() for value in neutral[key])
            remedy = f"leave it out or send {allowed}" if allowed else "leave it out"
            raise Refused(f"'{key}' is not supported here with that value; {remedy}", key, "unsupported_parameter")
    return fields


def check_stream_options(stream: bool, options: StreamOptions | None) -> None:
    if options and not stream:
        raise Refused("'stream_options' is for streams; send 'stream': true", "stream_options", "invalid_value")


def refusal(message: str) -> Refused:
    match = PLACE.match(message)
    assert match
    what, place = match[1], match[2] or ""
    if unknown := UNKNOWN.match(what):
        name = f"{place}.{unknown[1]}" if place else unknown[1]
        return Refused(f"unknown field '{name}'", name, "unknown_parameter")
    if place == "tool_choice":
        forms = '"auto", "none", "required", {"type": "function", …} and {"type": "allowed_tools", …}'
        return Refused(f"'tool_choice' may be {forms}", place, "invalid_value")
    if missing := re.match(r"Object missing required field `(.+?)`", what):
        place = f"{place}.{missing[1]}" if place else missing[1]
    return Refused(f"'{place}': {what[0].lower()}{what[1:]}" if place else what, place or None, "invalid_value")


def check_parts(messages: Any) -> None:
    """Refuses parts of a kind that no model here takes, before their further fields are looked at."""
    for index, message in enumerate(messages if isinstance(messages, list) else []):
        content = message.get("content") if isinstance(message, dict) else None
        for at, part in enumerate(content if isinstance(content, list) else []):
            kind = part.get("type") if isinstance(part, dict) else None
            if isinstance(kind, str) and kind != "text":
                where = f"messages[{index}].content[{at}]"
                raise Refused(
                    f"'{where}': content of type '{kind}' is not supported here; only text",
                    where,
                    "unsupported_parameter",
                )


def check_messages(messages: list[Message]) -> None:
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if message.content is None and not message.tool_calls:
            raise Refused(f"'{where}.content' is missing", f"{where}.content", "invalid_value")
        if message.tool_calls and message.role != "assistant":
            raise Refused(f"'{where}.tool_calls' belongs to an assistant message", f"{where}.tool_calls")


def check_tools(tools: list[Tool]) -> None:
    """Whether the rest of a schema can be enforced is the engine's to say."""
    names = [tool.function.name for tool in tools]
    for index, tool in enumerate(tools):
        where = f"tools[{index}].function"
        if tool.function.name in names[:index]:
            raise Refused(f"two tools are named '{tool.function.name}'", f"{where}.name", "invalid_value")
        if (tool.function.parameters or {}).get("type", "object") != "object":
            raise Refused(f"'{where}.parameters' must be a schema of type 'object'", f"{where}.parameters")


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
        [message_fields(message) for message in request.messages],
        [msgspec.to_builtins(tool) for tool in tools] or None,
        required,
        name,
        request.parallel_tool_calls,
        request.chat_template_kwargs,
        request.reasoning_effort or "",
    )


def allowed(tools: list[Tool], names: list[str], where: str) -> list[Tool]:
    have = [tool.function.name for tool in tools]
    if unknown := next((name for name in names if name not in have), None):
        raise Refused(f"there is no tool '{unknown}'; have: {', '.join(have) or 'none'}", where, "invalid_value")
    return [tool for tool in tools if tool.function.name in names]


def sampling(request: Any, **further: Any) -> Sampling:
    """From the fields that a chat completion's request and a text completion's have in common; the others as given."""
    alike = {name: getattr(request, name) for name in SAMPLED}
    stop = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop)
    return Sampling(**alike, stop=stop, stop_token_ids=tuple(request.stop_token_ids), **further)


def to_job(request: ChatRequest, id: str) -> Job:
    limits = [limit for limit in (request.max_completion_tokens, request.max_tokens) if limit is not None]
    if request.top_logprobs and not request.logprobs:
        raise Refused("'top_logprobs' needs 'logprobs': true", "top_logprobs", "invalid_value")
    return Job(
        id,
        request.model,
        chat_of(request),
        sampling(
            request,
            max_tokens=min(limits, default=None),
            logprobs=request.top_logprobs if request.logprobs else None,
            constraint=constraint(request.response_format),
        ),
        request.stream,
    )


def constraint(form: TextFormat | JsonFormat | SchemaFormat) -> Constraint | None:
    match form:
        case TextFormat():
            return None
        case JsonFormat():
            return JSON_OBJECT
        case SchemaFormat(named):
            return JsonSchema(msgspec.json.encode(named.schema).decode())


def message_fields(message: Message) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(message)
    if message.role == "developer":  # the newer name of the same thing; no model's template knows it
        fields["role"] = "system"
    return fields
