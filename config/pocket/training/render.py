"""A conversation as text: the chat template for the prompt, Qwen's form for the answer."""

import json
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

FOLDER = Path(__file__).parents[1]


def prompt_text(messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, thinking: bool) -> str:
    """The prompt up to where the assistant begins to write, as transformers renders it."""
    return _template().render(messages=messages, tools=tools, add_generation_prompt=True, enable_thinking=thinking)


def answer_text(message: dict[str, Any]) -> str:
    """What the assistant writes: thought, text and calls, without the closing <|im_end|>."""
    thought = message.get("reasoning_content") or ""
    blocks = [f"<tool_call>\n{_call(call['function'])}\n</tool_call>" for call in message.get("tool_calls") or []]
    text = "\n".join(([message["content"]] if message.get("content") else []) + blocks)
    return f"<think>\n{thought}\n</think>\n\n{text}" if thought else text


def _call(function: dict[str, Any]) -> str:
    arguments = function["arguments"]
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    return f'{{"name": "{function["name"]}", "arguments": {json.dumps(arguments, ensure_ascii=False)}}}'


@cache
def _template() -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    environment.globals["raise_exception"] = _raise
    return environment.from_string((FOLDER / "chat_template.jinja").read_text(encoding="utf-8"))


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
