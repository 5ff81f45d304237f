"""A field that is not known gets a 400 that names it, at any depth; what real clients send is taken."""

import json
import typing
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from enginehouse.runtimes.contract import JSON_OBJECT, JsonSchema
from enginehouse.runtimes.errors import Refused
from enginehouse.server import body
from enginehouse.server.api.chat import protocol as chat
from enginehouse.server.api.completions import protocol as completions
from enginehouse.server.api.embeddings import EmbeddingRequest
from enginehouse.server.api.messages import protocol as messages
from enginehouse.server.api.ollama import embed as ollama_embed
from enginehouse.server.api.ollama import protocol as ollama
from enginehouse.server.api.ollama.options import Options
from enginehouse.server.api.ollama.pull import PullRequest
from enginehouse.server.api.rerank import RerankRequest
from enginehouse.server.api.responses import protocol as responses
from enginehouse.server.api.score import ScoreRequest
from enginehouse.server.api.tokenize import DetokenizeRequest, TokenizeRequest

REQUESTS = (
    chat.ChatRequest,
    completions.CompletionRequest,
    responses.ResponseRequest,
    responses.Items,
    messages.MessageRequest,
    EmbeddingRequest,
    RerankRequest,
    ScoreRequest,
    TokenizeRequest,
    DetokenizeRequest,
    ollama.OllamaChatRequest,
    ollama.GenerateRequest,
    Options,
    ollama_embed.EmbedRequest,
    ollama_embed.EmbeddingsRequest,
    PullRequest,
)


def structs(of: Any) -> Iterator[type[msgspec.Struct]]:
    if isinstance(of, type) and issubclass(of, msgspec.Struct):
        yield of
        for field in msgspec.structs.fields(of):
            yield from structs(field.type)
    for inner in typing.get_args(of):
        yield from structs(inner)


@pytest.mark.parametrize("struct", sorted(set(structs(typing.Union[REQUESTS])), key=str))  # noqa: UP007
def test_every_struct_of_a_request_forbids_unknown_fields(struct: type[msgspec.Struct]) -> None:
    assert struct.__struct_config__.forbid_unknown_fields


SAID = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CHAT = {"model": "m", "messages": [SAID]}
RESPONSE = {"model": "m", "input": "hi"}
MESSAGE = {"model": "m", "max_tokens": 9, "messages": [SAID]}


def read_response(given: bytes) -> Any:
    request = responses.read(given)
    return responses.to_job(request, [], responses.items_of(request.input), "id")


def with_content(*blocks: dict[str, Any], role: str = "user") -> dict[str, Any]:
    return MESSAGE | {"messages": [{"role": role, "content": list(blocks)}]}


UNKNOWN: list[tuple[Callable[[bytes], Any], dict[str, Any], str]] = [
    (chat.read, {"response_format": {"type": "text", "json_schema": {}}}, "response_format.json_schema"),
    (chat.read, {"response_format": {"type": "json_object", "schem": {}}}, "response_format.schem"),
    (chat.read, {"tools": [TOOL | {"x": 1}]}, "tools[0].x"),
    (chat.read, {"tools": [{"type": "function", "function": {"name": "f", "params": {}}}]}, "tools[0].function.params"),
    (chat.read, {"tool_choice": {"type": "function", "function": {"name": "f", "x": 1}}}, "tool_choice.function.x"),
    (chat.read, {"messages": [{"role": "assistant", "tool_calls": [CALL | {"x": 1}]}]}, "messages[0].tool_calls[0].x"),
    (read_response, {"input": [SAID | {"x": 1}]}, "input[0].x"),
    (read_response, {"input": [SAID | {"content": [{"type": "input_text", "txt": ""}]}]}, "input[0].content[0].txt"),
    (read_response, {"tools": [{"type": "function", "name": "f", "stric": True}]}, "tools[0].stric"),
    (read_response, {"text": {"format": {"type": "text", "x": 1}}}, "text.format.x"),
    (messages.read, {"tools": [{"name": "f", "input_schema": {}, "x": 1}]}, "tools[0].x"),
    (messages.read, with_content({"type": "text", "text": "a", "x": 1}), "messages[0].content[0].x"),
    (messages.read, {"output_config": {"format": {"type": "json_schema", "schema": {}, "x": 1}}}, "output_config.format.x"),  # noqa: E501
    (ollama.read_chat, {"tools": [TOOL | {"x": 1}]}, "tools[0].x"),
    (ollama.read_chat, {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "x": 1}}]}]},
     "messages[0].tool_calls[0].function.x"),
]  # fmt: skip
GOOD: dict[Any, dict[str, Any]] = {
    chat.read: CHAT,
    read_response: RESPONSE,
    messages.read: MESSAGE,
    ollama.read_chat: CHAT,
}


@pytest.mark.parametrize(("read", "change", "name"), UNKNOWN, ids=[name for _, _, name in UNKNOWN])
def test_a_field_that_is_not_known_is_named(read: Callable[[bytes], Any], change: dict[str, Any], name: str) -> None:
    with pytest.raises(Refused) as refused:
        read(json.dumps(GOOD[read] | change).encode())
    assert (refused.value.param, refused.value.code) == (name, "unknown_parameter")


def test_a_json_object_with_a_schema_is_that_schema() -> None:
    schema = {"type": "object", "required": ["a"]}
    asked = chat.read(json.dumps(CHAT | {"response_format": {"type": "json_object", "schema": schema}}).encode())
    assert chat.to_jobs(asked, "id")[0].sampling.constraint == JsonSchema(json.dumps(schema, separators=(",", ":")))
    plain = chat.read(json.dumps(CHAT | {"response_format": {"type": "json_object"}}).encode())
    assert chat.to_jobs(plain, "id")[0].sampling.constraint == JSON_OBJECT
    job = read_response(json.dumps(RESPONSE | {"text": {"format": {"type": "json_object", "schema": schema}}}).encode())
    assert job.sampling.constraint == JsonSchema(json.dumps(schema, separators=(",", ":")))


# What claude-code, opencode and OpenAI's and Anthropic's packages send, and send back of what they were given.
SENT: list[tuple[Callable[[bytes], Any], dict[str, Any]]] = [
    (messages.read, {"tools": [
        {"name": "f", "input_schema": {}, "cache_control": {"type": "ephemeral"}, "defer_loading": True},
        {"name": "g", "input_schema": {}, "eager_input_streaming": True, "type": "custom", "strict": None},
    ]}),
    (messages.read, with_content(
        {"type": "thinking", "thinking": "a", "signature": "s"},
        {"type": "redacted_thinking", "data": "d"},
        {"type": "text", "text": "a", "citations": None, "cache_control": {"type": "ephemeral"}},
        {"type": "tool_use", "id": "a", "name": "f", "input": {}, "caller": {"type": "direct"}, "toolset_name": None},
        role="assistant",
    )),
    (messages.read, with_content({"type": "tool_result", "tool_use_id": "a", "is_error": True, "content": [
        {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]})),
    (chat.read, {"messages": [SAID, {
        "role": "assistant", "content": None, "refusal": None, "annotations": [], "audio": None, "function_call": None,
        "tool_calls": [CALL | {"index": 0}]}, {"role": "tool", "content": "1", "tool_call_id": "c"}]}),
    (ollama.read_chat, {"messages": [SAID, {  # what Ollama's packages for Python and Node send back
        "role": "assistant", "content": "", "thinking": "t", "images": None, "tool_name": None,
        "tool_calls": [{"id": "c", "function": {"index": 0, "name": "f", "arguments": {"a": 1}}}]},
        {"role": "tool", "content": "1", "tool_name": "f"}],
        "tools": [TOOL | {"items": None}], "keep_alive": 300, "options": {}, "format": ""}),
    (read_response, {"input": [
        {"id": "rs_1", "type": "reasoning", "summary": [], "status": None, "encrypted_content": None,
         "content": [{"type": "reasoning_text", "text": "t"}]},
        {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "phase": None,
         "content": [{"type": "output_text", "text": "a", "annotations": [], "logprobs": []}]},
        {"id": "fc_1", "type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", "status": "completed",
         "namespace": None, "caller": None},
        {"type": "function_call_output", "call_id": "c", "output": "1", "status": None}]}),
]  # fmt: skip


@pytest.mark.parametrize(("read", "change"), SENT)
def test_what_clients_send_is_taken(read: Callable[[bytes], Any], change: dict[str, Any]) -> None:
    read(json.dumps(GOOD[read] | change).encode())


@pytest.mark.parametrize(
    ("read", "change", "words"),
    [
        (chat.read, {"messages": [{"role": "user", "content": [{"image_url": {}, "type": "image_url"}]}]}, "image_url"),
        (read_response, {"input": [{"role": "user", "content": [{"detail": "low", "type": "input_image"}]}]}, "image"),
        (messages.read, {"tools": [{"max_uses": 1, "type": "web_search", "name": "w"}]}, "tools of type 'web_search'"),
        (messages.read, with_content({"source": {}, "type": "image"}), "content of type 'image'"),
    ],
)  # fmt: skip
def test_a_kind_that_is_not_taken_is_named_before_its_fields(read: Any, change: dict[str, Any], words: str) -> None:
    with pytest.raises(Refused, match=words):
        read(json.dumps(GOOD[read] | change).encode())


def test_a_body_is_refused_by_name_whatever_its_shape() -> None:
    odds: list[dict[str, Any]] = [{"messages": 1}, {"messages": [1]}, {"messages": [{"role": "user", "content": [1]}]}]
    for odd in odds:
        with pytest.raises(Refused, match="messages"):
            body.parse(json.dumps(CHAT | odd).encode(), chat.ChatRequest, check_kinds=chat.check_kinds)


def test_a_stored_item_with_a_field_that_is_not_known_is_a_refusal() -> None:
    request = responses.read(json.dumps(RESPONSE).encode())
    history = [{"type": "message", "role": "user", "content": "a", "x": 1}]
    with pytest.raises(Refused, match="earlier response") as refused:
        responses.to_job(request, history, responses.items_of(request.input), "id")
    assert refused.value.param == "previous_response_id"
