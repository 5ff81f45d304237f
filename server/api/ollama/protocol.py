"""Ollama's wire shapes for a chat and a text: what a request may hold, what has no effect here, and the job it is."""

import re
from typing import Annotated, Any, Literal

import msgspec

from enginehouse.runtimes.contract import JSON_OBJECT, Chat, Constraint, Job, Prompt, Text
from enginehouse.runtimes.errors import Refused
from enginehouse.server.api.constraints import json_schema
from enginehouse.server.api.conversation import without_empty_answer
from enginehouse.server.api.ollama import options
from enginehouse.server.api.sampling import TopLogprobs
from enginehouse.server.api.tools import check_tools, function_tool, short_name, tool_fields
from enginehouse.server.body import Ignored, parse
from enginehouse.server.limits import MESSAGES, TOOLS

# Accepted only with the value that asks for nothing; anything else is refused by name.
NEUTRAL: dict[str, tuple[Any, ...]] = {"truncate": (False,), "shift": (False,), "_debug_render_only": (False,)}
NEUTRAL_OF_TEXT = NEUTRAL | {
    "images": ([],),
    "suffix": ("",),
    "template": ("",),
    "context": ([],),
    "width": (),
    "height": (),
    "steps": (),
}
LONGEST_STAY = 1e9  # seconds
Stay = Annotated[float, msgspec.Meta(le=LONGEST_STAY)] | str
DURATION = re.compile(r"([-+]?)((?:\d+(?:\.\d*)?(?:ns|us|µs|ms|s|m|h))+)")
PART = re.compile(r"(\d+(?:\.\d*)?)(ns|us|µs|ms|s|m|h)")
SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
NO_IMAGES = (b"", b"[]", b"null")


class Function(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    name: str
    arguments: dict[str, Any] = {}
    index: Ignored = None
    description: Ignored = None


class Call(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    function: Function
    id: str = ""
    type: Literal["function"] = "function"


class Message(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = ""
    thinking: str | None = None
    images: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    tool_calls: Annotated[list[Call], msgspec.Meta(max_length=TOOLS)] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class ToolFunction(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    function: ToolFunction
    type: Literal["function"] = "function"
    items: Ignored = None


class Request(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """What both have in common."""

    model: str
    stream: bool = True
    format: str | dict[str, Any] = ""
    options: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    think: bool | Literal["low", "medium", "high", "max"] | None = None
    keep_alive: Stay | None = None
    logprobs: bool = False
    top_logprobs: TopLogprobs = 0


class OllamaChatRequest(Request, kw_only=True, forbid_unknown_fields=True, frozen=True):
    messages: Annotated[list[Message], msgspec.Meta(max_length=MESSAGES)] = []
    tools: Annotated[list[Tool], msgspec.Meta(max_length=TOOLS)] = []


class GenerateRequest(Request, kw_only=True, forbid_unknown_fields=True, frozen=True):
    prompt: str = ""
    system: str = ""
    raw: bool = False  # the prompt is taken as it is, without the chat template


def read_chat(body: bytes) -> OllamaChatRequest:
    """A request for a chat, or Refused with the field's name."""
    return parse(body, OllamaChatRequest, (), NEUTRAL)


def read_generate(body: bytes) -> GenerateRequest:
    return parse(body, GenerateRequest, (), NEUTRAL_OF_TEXT)


def chat_job(request: OllamaChatRequest, chosen: options.Options, id: str, model: str) -> Job:
    """`model`: its name in the config."""
    tools = [
        function_tool(tool.function.name, tool.function.description, tool.function.parameters, tool.function.strict)
        for tool in request.tools
    ]
    check_tools(tools)
    return to_job(request, chosen, id, model, to_chat(request, conversation(request.messages), tool_fields(tools)))


def generate_job(request: GenerateRequest, chosen: options.Options, id: str, model: str) -> Job:
    if request.raw:
        for field in ("system", "think"):
            if getattr(request, field):
                raise Refused(f"'{field}' belongs to the chat template, which 'raw' leaves out", field, "invalid_value")
        return to_job(request, chosen, id, model, Text(request.prompt))
    system = [{"role": "system", "content": request.system}] if request.system else []
    messages = [*system, {"role": "user", "content": request.prompt}]
    return to_job(request, chosen, id, model, to_chat(request, messages, None))


def to_job(request: Request, chosen: options.Options, id: str, model: str, prompt: Prompt) -> Job:
    logprobs = request.top_logprobs if request.logprobs else None
    sampling = options.sampling_of(chosen, logprobs, constraint(request.format))
    return Job(id, model, prompt, sampling, request.stream)


def to_chat(request: Request, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> Chat:
    if isinstance(request.think, bool):  # templates have one or the other
        return Chat(messages, tools, template_options={"enable_thinking": request.think, "thinking": request.think})
    return Chat(messages, tools, effort=request.think or "")


def constraint(form: str | dict[str, Any]) -> Constraint | None:
    match form:
        case "":
            return None
        case "json":
            return JSON_OBJECT
        case str():
            raise Refused(f"'format' is \"json\" or a JSON schema, not '{form}'", "format", "invalid_value")
        case _:
            return json_schema(form, "format")


def conversation(messages: list[Message]) -> list[dict[str, Any]]:
    """As chat templates take it. Calls have no ids here: a result belongs to the first call of its tool that has none
    yet, or to the first of all."""
    out: list[dict[str, Any]] = []
    unanswered: dict[str, str] = {}  # names of tools by the ids of calls
    for index, message in enumerate(messages):
        if bytes(message.images) not in NO_IMAGES:
            where = f"messages[{index}].images"
            raise Refused(f"'{where}': no model here sees images; send text", where, "unsupported_parameter")
        fields: dict[str, Any] = {"role": message.role, "content": message.content or ""}
        if message.role == "tool":
            fields["tool_call_id"] = answered(message, unanswered, f"messages[{index}]")
        if message.thinking:
            fields["reasoning_content"] = message.thinking
        if message.tool_calls:
            if message.role != "assistant":
                where = f"messages[{index}].tool_calls"
                raise Refused(f"'{where}' belongs to an assistant message", where, "invalid_value")
            calls = {call.id or f"call_{index}_{at}": call for at, call in enumerate(message.tool_calls)}
            unanswered |= {id: call.function.name for id, call in calls.items()}
            fields["tool_calls"] = [call_fields(id, call.function) for id, call in calls.items()]
        out.append(fields)
    return without_empty_answer(out)


def answered(message: Message, unanswered: dict[str, str], where: str) -> str:
    """The id of the call that this is the result of."""
    if message.tool_call_id:
        found = message.tool_call_id if message.tool_call_id in unanswered else None
    else:
        named = (id for id, name in unanswered.items() if message.tool_name in (None, "", name))
        found = next(named, None)
    if found is None:
        field = "tool_call_id" if message.tool_call_id else "tool_name"
        sent = message.tool_call_id or message.tool_name or ""
        raise Refused(
            f"'{where}.{field}': no tool call before it waits for a result of '{sent}'",
            f"{where}.{field}",
            "invalid_value",
        )
    del unanswered[found]
    return found


def call_fields(id: str, function: Function) -> dict[str, Any]:
    arguments = msgspec.json.encode(function.arguments).decode()
    return {"id": id, "type": "function", "function": {"name": short_name(function.name), "arguments": arguments}}


def seconds_of(stay: Stay) -> float | None:
    """Of `keep_alive`: a number of seconds, or a duration as Go writes it; None: for ever."""
    if isinstance(stay, str):
        stay = duration(stay)
    return None if stay < 0 else stay


def duration(sent: str) -> float:
    match = DURATION.fullmatch(sent)
    if match:
        seconds = sum(float(number) * SECONDS[unit] for number, unit in PART.findall(match[2]))
        seconds = -seconds if match[1] == "-" else seconds
    else:
        try:
            seconds = float(sent)
        except ValueError:
            seconds = LONGEST_STAY * 2
    if not seconds <= LONGEST_STAY:
        raise Refused(
            f"'keep_alive' is a number of seconds or a duration such as 5m, not '{sent[:40]}'",
            "keep_alive",
            "invalid_value",
        )
    return seconds
