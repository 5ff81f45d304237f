"""A model's own chat template, rendered in a sandbox: messages -> prompt text."""

import datetime
import functools
import json
from typing import Any, NoReturn

import jinja2
import jinja2.sandbox

from runtimes import formats
from runtimes.calling import Format
from runtimes.contract import Facts, Refused

# For a model without a template: the plainest form that base models continue sensibly.
PLAIN = (
    "{% for m in messages %}{{ m.role | capitalize }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


def render(
    facts: Facts, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, options: dict[str, Any]
) -> str:
    """The prompt up to where the assistant begins to speak. Raises Refused for what the template will not take."""
    template_text = facts.chat_template or PLAIN
    template, form = compiled(template_text), formats.form_of(facts.chat_template)
    tools = [described(tool) for tool in tools or []]
    known = tools if form.knows_tools else None
    variables = {"bos_token": facts.bos, "eos_token": facts.eos, "add_generation_prompt": True}
    try:
        return template.render(
            **(variables | options), messages=prepared(form, template_text, messages, tools), tools=known or None
        )
    except jinja2.TemplateError as error:
        raise Refused(f"the model's chat template refuses these messages: {error.message}", "messages") from error
    except Refused:
        raise
    except Exception as error:  # a template is foreign code: whatever it raises must not end the worker
        raise Refused(f"the model's chat template cannot render these messages: {error}", "messages") from error


@functools.lru_cache(maxsize=8)
def compiled(source: str) -> jinja2.Template:
    """The settings are those Hugging Face templates are written for."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise Refused(f"the model's chat template is broken at line {error.lineno}: {error.message}") from error


def to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """Jinja's own tojson escapes for HTML, which no model was trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def described(tool: dict[str, Any]) -> dict[str, Any]:
    """With all that templates look for, and nothing that is for us."""
    defaults = {"description": "", "parameters": {"type": "object", "properties": {}}}
    function = {key: value for key, value in tool["function"].items() if key != "strict"}
    return tool | {"function": {"name": function["name"]} | defaults | function}


def prepared(
    form: Format, template: str, messages: list[dict[str, Any]], tools: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """As the template wants them; each result with the name of the function that gave it."""
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
    return form.prepare(out, tools, template)


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
