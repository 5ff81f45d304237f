"""From a job's prompt to what its engine takes: the chat template rendered, token ids, and tools as a constraint."""

import datetime
import functools
import json
from typing import Any

import jinja2
import jinja2.meta
import msgspec

from enginehouse.optimize.sources.chat_template import Sandbox, bounded, sandbox
from enginehouse.runtimes.contract import (
    Chat,
    Constraint,
    Engine,
    Facts,
    Ids,
    JsonSchema,
    Prompt,
    Sampling,
    Structured,
    Text,
    asked_for,
)
from enginehouse.runtimes.errors import Refused, TooLong
from enginehouse.runtimes.structure import JsonValue
from enginehouse.runtimes.tool_calls import parsers
from enginehouse.runtimes.tool_calls.parser import ParseOptions, Tool, ToolParser
from enginehouse.runtimes.worker.answer import OutputParser
from enginehouse.runtimes.worker.length import check_messages, check_text
from enginehouse.runtimes.worker.protocol import Detokenize, Embed, Submit, Tokenize
from enginehouse.runtimes.worker.roles import arranged, taken_by


def prepare(engine: Engine, prompt: Prompt, sampling: Sampling) -> tuple[list[int], OutputParser, Sampling]:
    """The prompt's token ids, what will take its answer apart, and the sampling with what tools ask of it."""
    if not isinstance(prompt, Chat):
        ids = prompt.ids if isinstance(prompt, Ids) else encode_text(engine, prompt)
        return ids, OutputParser(sampling.stop), sampling
    check_messages(prompt.messages, engine.facts)
    options = prompt.template_options
    text = render(engine.facts, prompt.messages, prompt.tools, options, prompt.effort, prompt.ending)
    parser = parsers.parser_of(engine.facts.chat_template)
    parsing = options_of(parser, engine.facts.chat_template or "", text, prompt, sampling)
    sampling = msgspec.structs.replace(sampling, constraint=constraint_of(parser, parsing, prompt, sampling))
    return encode(engine, text), OutputParser(sampling.stop, lambda scanner: parser.read(scanner, parsing)), sampling


def encode(engine: Engine, text: str) -> list[int]:
    """Refuses text that cannot fit the context before it is tokenized, which can take minutes."""
    check_text(text, engine.facts)
    return engine.encode(text)


def check_prediction(text: str, facts: Facts) -> None:
    try:
        check_text(text, facts)
    except Refused as error:
        reason = f"'prediction' cannot fit the model's context of {facts.context_length} tokens"
        raise Refused(reason, "prediction", error.code) from error


def encode_text(engine: Engine, prompt: Text) -> list[int]:
    ids, bos = encode(engine, prompt.text), engine.facts.bos
    bos_added = bos and not prompt.text.startswith(bos)
    return ids[1:] if bos_added and not prompt.special else ids


def options_of(parser: ToolParser, template: str, text: str, prompt: Chat, sampling: Sampling) -> ParseOptions:
    """`text`: the prompt, rendered."""
    (begin, end), begun = parser.thought, begun_answer(prompt.messages) if prompt.ending == "auto" else ""
    thinking = bool(begin) and (text.rstrip().endswith(begin) or begun.rfind(begin) > begun.rfind(end))
    reasoning = bool(begin) and begin in template
    return ParseOptions(
        tuple(tool_of(tool, prompt) for tool in prompt.tools or ()),
        prompt.call_required,
        prompt.parallel_calls,
        reasoning=reasoning and (thinking or not begun),
        thinking=thinking,
        content=content_of(sampling),
    )


def constraint_of(parser: ToolParser, options: ParseOptions, prompt: Chat, sampling: Sampling) -> Constraint | None:
    if options.tools:
        if sampling.constraint and not options.content:
            raise Refused("of all constraints only a JSON schema can stand beside 'tools'", "response_format")
        allowed = tuple(tool for tool in options.tools if prompt.call_name in ("", tool.name))
        return Structured(parser.structure(msgspec.structs.replace(options, tools=allowed)))
    # Only what comes after the thought is held to the schema.
    if options.content and (options.thinking or not parser.thought[0]):
        return Structured(parser.structure(options), "response_format")
    return sampling.constraint


MORE_PROPERTIES = {"anyOf", "oneOf", "allOf", "patternProperties", "$ref"}  # where a schema may name them elsewhere


def tool_of(tool: dict[str, Any], prompt: Chat) -> Tool:
    """Arguments are enforced where a call is, or where that is asked for; else as far as the engine can."""
    function = tool["function"]
    strict = function.get("strict")
    must = strict or (prompt.call_required and strict is None)
    schema = {"type": "object"} | (function.get("parameters") or {"properties": {}})
    if "properties" in schema and not schema.keys() & MORE_PROPERTIES:  # other names than these help nobody
        schema = {"additionalProperties": False} | schema
    return Tool(function["name"], JsonValue(msgspec.json.encode(schema).decode(), must))


def content_of(sampling: Sampling) -> JsonValue | None:
    return JsonValue(sampling.constraint.schema, must=True) if isinstance(sampling.constraint, JsonSchema) else None


def remaining(sampling: Sampling, generated: int) -> Sampling:
    """What is left to ask for once so many tokens are there."""
    limit = sampling.max_tokens - generated if sampling.max_tokens else None
    return msgspec.structs.replace(sampling, max_tokens=limit, min_tokens=max(0, sampling.min_tokens - generated))


def check_features(sampling: Sampling, facts: Facts, echo: bool = False) -> None:
    """Refuses by name what this engine does not honour; stop strings are this process's own doing."""
    for feature, param in asked_for(sampling, echo):
        if feature not in facts.features:
            raise Refused(f"'{feature}' is not honoured by this model's engine", param, "unsupported_parameter")


def check_length(tokens: int, context: int, answered: bool = True) -> None:
    """`answered`: one token at least is to follow."""
    if tokens + answered > context:
        raise TooLong(context, tokens)


def field_at_fault(error: Refused, message: Submit | Embed | Tokenize | Detokenize) -> str | None:
    """The field at fault as its client knows it: engines say 'messages' of every prompt."""
    if error.param != "messages":
        return error.param
    match message:
        case Submit(prompt=Chat()) | Tokenize(prompt=Chat()):
            return "messages"
        case Submit() | Tokenize():
            return "prompt"
        case Embed():
            return "input"
        case Detokenize():
            return "tokens"


# --- the chat template ---

# For a model without a template: the plainest form that base models continue sensibly.
PLAIN = (
    "{% for m in messages %}{{ m.role | capitalize }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


# Variables by which templates let a model think or not.
THINKING = ("enable_thinking", "thinking")
WITHOUT_THOUGHT = ("none", "minimal")  # efforts


def render(
    facts: Facts,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None,
    template_options: dict[str, Any],
    effort: str = "",
    ending: str = "auto",
) -> str:
    """The prompt up to where the assistant begins to speak, or goes on with what the last message says of its answer.
    Raises Refused for what the template will not take."""
    source = facts.chat_template or PLAIN
    template, parser = compiled(source), parsers.parser_of(facts.chat_template)
    tools = [described(tool) for tool in tools or []]
    variables = {"bos_token": facts.bos, "eos_token": facts.eos, "add_generation_prompt": ending != "none"}
    variables |= (effort_variables(effort, source) if effort else {}) | template_options
    try:
        given = {
            "messages": parser.prepare(arranged(named(messages), taken_by(source, template)), tools, source),
            "tools": (parser.knows_tools and tools) or None,
        }
        with bounded():
            text = template.render(**variables, **given)
            if ending != "auto" or not goes_on(messages[-1]):
                return text
            closed = template.render(**(variables | {"add_generation_prompt": False}), **given)
        return continued(closed, text, begun_answer(messages), parser.thought)
    except jinja2.TemplateError as error:
        raise Refused(f"the model's chat template refuses these messages: {error.message}", "messages") from error
    except Refused:
        raise
    except Exception as error:  # a template is foreign code: whatever it raises must not end the worker
        raise Refused(f"the model's chat template cannot render these messages: {error}", "messages") from error


def begun_answer(messages: list[dict[str, Any]]) -> str:
    """What the last message says of the assistant's own answer, which is to be continued; "" if it does not."""
    return str(plain(messages[-1])["content"]) if goes_on(messages[-1]) else ""


def goes_on(message: dict[str, Any]) -> bool:
    return message["role"] == "assistant" and not message.get("tool_calls")


def continued(text: str, with_next: str, begun: str, thought: tuple[str, str]) -> str:
    """A rendering without what closes the last message, as transformers' continue_final_message does it; and where the
    template lets an answer begin with an empty thought (`with_next`), so does this one."""
    at = text.rfind(begun.strip())
    if not begun.strip() or at < 0:
        raise Refused(
            "the last message is the assistant's, and its text is not in the prompt that the model's chat template "
            "makes, so it cannot be continued; end with a message of another role",
            "messages",
        )
    whole = begun.lstrip()  # templates may keep or drop blanks
    begun = whole if text.startswith(whole, at) else begun.strip()
    before, (begin, end) = text[:at], thought
    if begin and with_next.rstrip().endswith(end) and not (before.rstrip().endswith(end) or begun.startswith(begin)):
        before += with_next[with_next.rfind(begin) :]
    return before + begun


def effort_variables(effort: str, template: str) -> dict[str, Any]:
    """The variables by which this template is told how much to think."""
    known = variables_of(template)
    switches = {name: effort not in WITHOUT_THOUGHT for name in THINKING if name in known}
    level = {"reasoning_effort": effort} if "reasoning_effort" in known else {}
    if not switches and not level:
        raise Refused(
            "this model's chat template knows no reasoning effort; leave it out", "reasoning_effort", "invalid_value"
        )
    return switches | level


@functools.lru_cache(maxsize=8)
def variables_of(source: str) -> frozenset[str]:
    """The variables a template looks at."""
    return frozenset(jinja2.meta.find_undeclared_variables(environment().parse(source)))


@functools.lru_cache(maxsize=8)
def compiled(source: str) -> jinja2.Template:
    try:
        return environment().from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise Refused(f"the model's chat template is broken at line {error.lineno}: {error.message}") from error


def environment() -> Sandbox:
    return sandbox(lambda pattern: datetime.datetime.now().strftime(pattern))


def described(tool: dict[str, Any]) -> dict[str, Any]:
    """With all that templates look for, and nothing that is for us."""
    defaults = {"description": "", "parameters": {"type": "object", "properties": {}}}
    function = {key: value for key, value in tool["function"].items() if key != "strict"}
    return tool | {"function": {"name": function["name"]} | defaults | function}


def named(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As templates want them; each result with the name of the function that gave it."""
    out: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    for message in map(plain, messages):
        names |= {call["id"]: call["function"]["name"] for call in message.get("tool_calls") or []}
        if (
            message["role"] == "tool"
            and not message.get("name")
            and (name := names.get(message.get("tool_call_id", "")))
        ):
            message["name"] = name
        out.append(message)
    return out


def plain(message: dict[str, Any]) -> dict[str, Any]:
    """Templates want text and parsed arguments where OpenAI's shape has content parts and JSON strings."""
    message = dict(message)
    content = message.get("content")
    if isinstance(content, list):
        message["content"] = "".join(part["text"] for part in content)
    elif content is None:
        message["content"] = ""
    if calls := message.get("tool_calls"):
        message["tool_calls"] = [call | {"function": parsed(call["function"])} for call in calls]
    return message


def certain_text(messages: list[dict[str, Any]]) -> str:
    """Text that every template puts into the prompt: what others than the assistant said, without blank ends."""
    return "\n".join(plain(m)["content"].strip() for m in messages if m["role"] != "assistant")


def parsed(function: dict[str, Any]) -> dict[str, Any]:
    try:
        return function | {"arguments": json.loads(function["arguments"] or "{}")}
    except ValueError as error:
        raise Refused(f"arguments of tool call '{function['name']}' are not JSON: {error}", "messages") from error
