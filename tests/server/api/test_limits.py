"""What is more than a limit is a 400 that names the field and the limit, in time that grows no faster than the body."""

import json
import time
from typing import Any

import pytest

from enginehouse.runtimes.errors import Refused
from enginehouse.server import limits
from enginehouse.server.api.chat import protocol as chat
from enginehouse.server.api.messages import protocol as messages
from enginehouse.server.api.ollama import options as ollama_options
from enginehouse.server.api.ollama import protocol as ollama
from enginehouse.server.api.responses import protocol as responses
from enginehouse.server.api.tools import Tool, ToolFunction, check_tools

SAID = {"role": "user", "content": "hi"}
CHAT = {"model": "m", "messages": [SAID]}
MESSAGE = {"model": "m", "max_tokens": 9, "messages": [SAID]}


def tool(number: int, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": f"f{number}", **more}}


def deep(levels: int) -> dict[str, Any]:
    value: Any = {}
    for _ in range(levels - 1):
        value = {"a": value}
    return {"type": "object", "a": value} if levels else value


def ask_chat(change: dict[str, Any]) -> None:
    chat.to_jobs(chat.read(json.dumps(CHAT | change).encode()), "id")


def ask_response(change: dict[str, Any]) -> None:
    asked = responses.read(json.dumps({"model": "m", "input": "hi"} | change).encode())
    responses.to_job(asked, [], responses.items_of(asked.input), "id")


def ask_message(change: dict[str, Any]) -> None:
    messages.to_job(messages.read(json.dumps(MESSAGE | change).encode()), "id")


def ask_ollama(change: dict[str, Any]) -> None:
    asked = ollama.read_chat(json.dumps(CHAT | change).encode())
    ollama.chat_job(asked, ollama_options.read(asked.options), "id", "m")


def bringing(*tools: dict[str, Any]) -> dict[str, Any]:
    """An input whose items bring a tool each."""
    items = [{"type": "additional_tools", "role": "developer", "tools": [one]} for one in tools]
    return {"input": [*items, SAID]}


def custom(number: int, about: str = "") -> dict[str, Any]:
    return {"type": "custom", "name": f"f{number}", "description": about}


def schema_format(schema: dict[str, Any]) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}}


PARAMETERS, SCHEMA = "tools[0].function.parameters", "response_format.json_schema.schema"
# The most that is taken, and one more.
BOUNDS: list[tuple[Any, Any, int, str]] = [
    (ask_chat, lambda n: {"messages": [SAID] * n}, limits.MESSAGES, "messages"),
    (ask_chat, lambda n: {"tools": [tool(number) for number in range(n)]}, limits.TOOLS, "tools"),
    (ask_response, lambda n: bringing(*(custom(number) for number in range(n))), limits.TOOLS, "tools"),
    (ask_response, lambda n: bringing(custom(0, "a" * (n - len('[{"type":"custom","name":"f0","description":""}]')))), limits.TOOLS_BYTES, "input[0].tools"),  # noqa: E501
    (ask_chat, lambda n: {"stop": ["a"] * n}, limits.STOPS, "stop"),
    (ask_chat, lambda n: {"stop": "a" * n}, limits.STOP_LETTERS, "stop"),
    (ask_chat, lambda n: {"stop": ["a" * n]}, limits.STOP_LETTERS, "stop[0]"),
    (ask_chat, lambda n: {"n": n}, limits.ANSWERS, "n"),
    (ask_chat, lambda n: {"logit_bias": {str(id): 1 for id in range(n)}}, limits.LOGIT_BIASES, "logit_bias"),
    (ask_chat, lambda n: {"stop_token_ids": [1] * n}, limits.STOP_TOKENS, "stop_token_ids"),
    (ask_chat, lambda n: {"tools": [tool(0, parameters=deep(n - 1))]}, limits.SCHEMA_DEPTH, PARAMETERS),
    (ask_chat, lambda n: schema_format({"title": "a" * (n - 12)}), limits.SCHEMA_BYTES, SCHEMA),
    (ask_chat, lambda n: {"chat_template_kwargs": {"a": "a" * (n - 8)}}, limits.SCHEMA_BYTES, "chat_template_kwargs"),
    (ask_chat, lambda n: {"messages": [SAID | {"content": [{"type": "text", "text": "a"}] * n}]}, limits.MESSAGES,
     "messages[0].content"),
    (ask_response, lambda n: {"input": [SAID] * n}, limits.MESSAGES, "input"),
    (ask_response, lambda n: {"tools": [{"type": "function", "name": f"f{i}"} for i in range(n)]},
     limits.TOOLS, "tools"),
    (ask_message, lambda n: {"messages": [SAID] * n}, limits.MESSAGES, "messages"),
    (ask_message, lambda n: {"tools": [{"name": f"f{i}"} for i in range(n)]}, limits.TOOLS, "tools"),
    (ask_message, lambda n: {"stop_sequences": ["a"] * n}, limits.STOPS, "stop_sequences"),
    (ask_ollama, lambda n: {"messages": [SAID] * n}, limits.MESSAGES, "messages"),
    (ask_ollama, lambda n: {"tools": [tool(number) for number in range(n)]}, limits.TOOLS, "tools"),
    (ask_ollama, lambda n: {"options": {"stop": ["a"] * n}}, limits.STOPS, "options.stop"),
    (ask_ollama, lambda n: {"format": {"title": "a" * (n - 12)}}, limits.SCHEMA_BYTES, "format"),
    (ask_ollama, lambda n: {"format": deep(n - 1)}, limits.SCHEMA_DEPTH, "format"),
]  # fmt: skip


@pytest.mark.parametrize(("ask", "change", "most", "field"), BOUNDS, ids=[f"{a.__name__}-{f}" for a, _, _, f in BOUNDS])
def test_one_more_than_the_limit_is_refused_with_field_and_limit(ask: Any, change: Any, most: int, field: str) -> None:
    ask(change(most))
    with pytest.raises(Refused, match=str(most)) as refused:
        ask(change(most + 1))
    assert refused.value.param == field


def test_tools_are_compared_in_time_that_grows_with_their_number() -> None:
    tools = [Tool("function", ToolFunction(f"f{number}")) for number in range(40_000)]
    began = time.perf_counter()
    with pytest.raises(Refused, match="1024"):
        check_tools(tools)
    chat_tools = tools[: limits.TOOLS]
    check_tools(chat_tools)
    chat.allowed(chat_tools, [tool.function.name for tool in chat_tools], "tool_choice")
    assert time.perf_counter() - began < 0.5


@pytest.mark.parametrize("field", ["chat_template_kwargs", "tools", "response_format", "metadata"])
def test_lists_without_end_are_refused_or_left_out_before_they_are_read(field: str) -> None:
    lists = b"[" + b"[]," * 3_000_000 + b"[]]"
    began = time.perf_counter()
    body = b'{"model":"m","messages":[{"role":"user","content":"a"}],"%b":%b}' % (field.encode(), lists)
    if field == "metadata":  # has no effect
        chat.read(body)
    else:
        with pytest.raises(Refused, match="at most") as refused:
            chat.read(body)
        assert refused.value.param == field
    assert time.perf_counter() - began < 0.5
