"""/v1/messages through the anthropic package: asked, streamed, counted, refused."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import msgspec
import pydantic
import pytest
from anthropic.types import message_count_tokens_params, message_create_params

from enginehouse.server.api.messages import protocol
from enginehouse.server.api.messages.protocol import CountRequest, MessageRequest
from tests.server.api.test_dialects import nameless
from tests.serving import Served, serve

FRANCE = "What is the capital of France?"
OSLO = "What is the weather in Oslo?"
TOOLS: list[Any] = [
    {
        "name": "get_weather",
        "description": "Current weather in a city",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        "cache_control": {"type": "ephemeral"},
    }
]
VERSION = {"anthropic-version": "2023-06-01"}
THINKING: Any = {"type": "enabled", "budget_tokens": 1024}


@pytest.fixture(scope="module")
def client(house: Served) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=house.root, api_key="none", max_retries=0, timeout=120) as client:
        yield client


def fields(content: Any = FRANCE, model: str = "pocket", **options: Any) -> dict[str, Any]:
    messages = content if isinstance(content, list) else [{"role": "user", "content": content}]
    sampling = options.pop("extra_body", {"temperature": 0})
    return {"model": model, "messages": messages, "max_tokens": 200, "extra_body": sampling} | options


def ask(client: anthropic.Anthropic, content: Any = FRANCE, model: str = "pocket", **options: Any) -> Any:
    return client.messages.create(**fields(content, model, **options))


def post(house: Served, path: str = "/v1/messages", headers: dict[str, str] | None = None, **given: Any) -> Any:
    body = {"model": "echo", "messages": [{"role": "user", "content": "a"}], "max_tokens": 5} | given
    return httpx.post(house.root + path, json=body, headers=headers, timeout=120)


# --- answers ---


def test_a_message_answers_and_says_why_it_ended(client: anthropic.Anthropic) -> None:
    reply = ask(client, model="gpt-4o-mini")
    assert (reply.content[0].text, reply.stop_reason, reply.stop_sequence) == (
        "The capital of France is Paris.",
        "end_turn",
        None,
    )
    assert (reply.role, reply.model) == ("assistant", "gpt-4o-mini")
    assert reply.usage.output_tokens > 5


CASES: dict[str, dict[str, Any]] = {
    "text": {"content": FRANCE},
    "tool": {"content": OSLO, "tools": TOOLS},
    "thought": {"content": "What is 7 + 5?", "thinking": THINKING},
    "hidden thought": {"content": "What is 7 + 5?", "thinking": THINKING | {"display": "omitted"}},
    "stop": {"content": FRANCE, "stop_sequences": ["is"]},
    "length": {"content": "Count from 1 to 20", "max_tokens": 3},
}


@pytest.mark.parametrize("case", CASES)
def test_a_stream_adds_up_to_the_message_that_is_given_whole(client: anthropic.Anthropic, case: str) -> None:
    asked = fields(**CASES[case], model="pocket-f32")
    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        final = stream.get_final_message()
    assert nameless(final.to_dict() | {"usage": 0}) == nameless(whole.to_dict() | {"usage": 0})
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert whole.content


def test_events_come_in_the_order_clients_count_on(client: anthropic.Anthropic) -> None:
    events = list(ask(client, "What is 7 + 5?", thinking=THINKING, stream=True))
    kinds = [event.type for event in events if event.type != "content_block_delta"]
    block = ["content_block_start", "content_block_stop"]
    assert kinds == ["message_start", *block, *block, "message_delta", "message_stop"]
    deltas = [event.delta.type for event in events if event.type == "content_block_delta"]
    assert list(dict.fromkeys(deltas)) == ["thinking_delta", "signature_delta", "text_delta"]
    assert [event.index for event in events if event.type == "content_block_start"] == [0, 1]


def test_the_asynchronous_client_streams_too(house: Served) -> None:
    async def text() -> str:
        async with anthropic.AsyncAnthropic(base_url=house.root, api_key="none") as client:
            async with client.messages.stream(**fields()) as stream:
                return "".join([piece async for piece in stream.text_stream])

    assert asyncio.run(text()) == "The capital of France is Paris."


def test_a_stop_sequence_is_named_and_never_sent(client: anthropic.Anthropic) -> None:
    reply = ask(client, "one STOP two", "echo", stop_sequences=["two", "STOP"])
    assert (reply.content[0].text, reply.stop_reason, reply.stop_sequence) == ("one ", "stop_sequence", "STOP")


def test_max_tokens_and_a_full_context_are_told_apart(client: anthropic.Anthropic, house: Served) -> None:
    assert ask(client, "Count from 1 to 20", max_tokens=3).stop_reason == "max_tokens"
    context = next(m for m in house.client.models.list() if m.id == "echo").status["context_length"]  # type: ignore[attr-defined]
    for max_tokens in (100, 10**9):
        long = ask(client, "x" * (context - 10), "echo", max_tokens=max_tokens)
        assert (long.stop_reason, long.usage.output_tokens) == ("model_context_window_exceeded", 10)


def test_a_prompt_is_too_long_by_as_much_as_is_said(client: anthropic.Anthropic, house: Served) -> None:
    context = next(m for m in house.client.models.list() if m.id == "echo").status["context_length"]  # type: ignore[attr-defined]
    for tokens, maximum in ((context, context - 1), (context + 5, context)):
        with pytest.raises(anthropic.BadRequestError, match=f"prompt is too long: {tokens} tokens > {maximum} maximum"):
            ask(client, "x" * tokens, "echo")


def test_the_system_prompt_is_a_text_or_blocks(client: anthropic.Anthropic) -> None:
    kind = {"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}
    systems: list[Any] = ["Be kind.\nBe brief.", [kind, {"type": "text", "text": "Be brief."}], ""]
    tokens = [
        client.messages.count_tokens(model="pocket", messages=fields()["messages"], system=system).input_tokens
        for system in systems
    ]
    assert tokens[0] == tokens[1] > tokens[2]


def test_a_thought_is_a_block_with_a_signature_and_can_be_passed_back(client: anthropic.Anthropic) -> None:
    reply = ask(client, "What is 7 + 5?", thinking=THINKING)
    thought, text = reply.content
    assert (thought.type, text.type, bool(thought.signature)) == ("thinking", "text", True)
    assert reply.usage.output_tokens_details.thinking_tokens > 0
    said = [
        {"role": "user", "content": "What is 7 + 5?"},
        reply.to_param(),
        {"role": "user", "content": "Who are you?"},
    ]
    assert ask(client, said, thinking=THINKING).content
    assert [block.type for block in ask(client, "What is 7 + 5?").content] == ["text"]
    hidden = ask(client, "What is 7 + 5?", thinking=THINKING | {"display": "omitted"}).content[0]
    assert (hidden.thinking, bool(hidden.signature)) == ("", True)


def test_what_was_read_from_the_cache_is_no_part_of_the_input_tokens(client: anthropic.Anthropic) -> None:
    asked = "Repeat: " + "lemon stone " * 20
    counted = client.messages.count_tokens(model="pocket", messages=[{"role": "user", "content": asked}]).input_tokens
    ask(client, asked)
    usage = ask(client, asked).usage
    assert usage.cache_read_input_tokens > 30
    assert usage.input_tokens + usage.cache_read_input_tokens == counted


class Person(pydantic.BaseModel):
    name: str
    age: int
    city: str


def test_the_line_by_which_a_client_is_billed_reaches_no_model(client: anthropic.Anthropic) -> None:
    """Claude Code's, at the head of the system prompt, another one each time."""
    rules = "You are a helpful assistant. Answer the user's questions. " * 8
    plain = ask(client, system=rules).usage
    tokens = plain.input_tokens + plain.cache_read_input_tokens
    for turn in range(2):
        line = f"x-anthropic-billing-header: cc_version=2.1.{turn}; cc_entrypoint=cli; cch={turn};"
        for system in (f"{line}\n{rules}", [{"type": "text", "text": line}, {"type": "text", "text": rules}]):
            usage = ask(client, system=system).usage
            assert usage.input_tokens + usage.cache_read_input_tokens == tokens
            assert usage.cache_read_input_tokens > 50


def test_a_schema_is_kept_to_and_parsed_by_the_client(client: anthropic.Anthropic) -> None:
    question = "Make JSON from this: Tom lives in Oslo and is 28 years old."
    reply = client.messages.parse(**fields(question), output_format=Person)
    assert reply.parsed_output == Person(name="Tom", age=28, city="Oslo")


# --- tools ---


def test_a_tool_is_used_and_its_result_becomes_an_answer(client: anthropic.Anthropic) -> None:
    first = ask(client, OSLO, tools=TOOLS)
    (use,) = first.content
    assert (first.stop_reason, use.type, use.name, use.input) == (
        "tool_use",
        "tool_use",
        "get_weather",
        {"city": "Oslo"},
    )
    text = '{"sky": "sunny", "degrees": 21}'
    answers = []
    for content in (text, [{"type": "text", "text": text}]):
        result = {"type": "tool_result", "tool_use_id": use.id, "content": content}
        said = [{"role": "user", "content": OSLO}, first.to_param(), {"role": "user", "content": [result]}]
        answers.append(ask(client, said, tools=TOOLS).content[0].text)
    assert "21" in answers[0]
    assert answers[0] == answers[1]


def test_results_and_text_of_one_turn_become_messages_in_their_order() -> None:
    body = {
        "model": "m",
        "max_tokens": 1,
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "x"},
                    {"type": "text", "text": "see"},
                    {"type": "tool_use", "id": "t1", "name": "f", "input": {"x": 1}},
                    {"type": "tool_use", "id": "t2", "name": "f", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": "1"},
                    {"type": "tool_result", "tool_use_id": "t2", "is_error": True},
                    {"type": "text", "text": "go on"},
                ],
            },
        ],
    }
    user, assistant, *results, last = protocol.to_chat(protocol.read(json.dumps(body).encode())).messages
    assert user == {"role": "user", "content": "a\nb"}
    assert (assistant["reasoning_content"], assistant["content"]) == ("hm", "see")
    assert [call["function"]["arguments"] for call in assistant["tool_calls"]] == ['{"x":1}', "{}"]
    assert [(r["role"], r["tool_call_id"], r["content"]) for r in results] == [("tool", "t1", "1"), ("tool", "t2", "")]
    assert last == {"role": "user", "content": "go on"}


def test_a_choice_of_tools_reaches_the_model() -> None:
    def chat(**choice: Any) -> Any:
        body = {"model": "m", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1, "tools": TOOLS}
        return protocol.to_chat(protocol.read(json.dumps(body | {"tool_choice": choice}).encode()))

    assert chat(type="none").tools is None
    assert not chat(type="auto").call_required
    assert chat(type="any").call_required
    named = chat(type="tool", name="get_weather", disable_parallel_tool_use=True)
    assert (named.call_required, named.call_name, named.parallel_calls) == (True, "get_weather", False)


def test_the_clients_own_tool_runner_runs_a_tool_without_a_thread(client: anthropic.Anthropic) -> None:
    @anthropic.beta_tool
    def get_weather(city: str) -> str:
        """Current weather in a city"""
        return json.dumps({"sky": "sunny", "degrees": 20, "city": city})

    last = client.beta.messages.tool_runner(**fields(OSLO), tools=[get_weather]).until_done()
    assert last.content[0].text.startswith("The weather in Oslo is")


# --- keys, refusals and errors ---


def test_a_key_is_taken_from_either_header(tmp_path: Path) -> None:
    with serve(tmp_path, {"echo": {"source": "builtin:echo"}}, api_keys=["secret"]) as served:
        for header in ({"x-api-key": "secret"}, {"authorization": "Bearer secret"}):
            assert post(served, headers=header).status_code == 200
        refused = post(served, headers={"x-api-key": "wrong"})
        assert (refused.status_code, refused.json()["error"]["type"]) == (401, "authentication_error")
        with pytest.raises(anthropic.AuthenticationError):
            ask(anthropic.Anthropic(base_url=served.root, api_key="wrong"))


def turn(*blocks: dict[str, Any], role: str = "user") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": list(blocks)}]}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": None}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "bob", "content": "a"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": []}]}, "'messages' says nothing"),
    (turn({"type": "image", "source": {}}), "'messages[0].content[0]': content of type 'image' is not supported here"),
    (turn({"type": "document", "source": {}}), "content of type 'document' is not supported here"),
    (turn({"type": "tool_result", "tool_use_id": "x", "content": [{"type": "search_result"}]}), "'search_result'"),
    (turn({"type": "tool_result", "tool_use_id": "x", "content": "a"}), "'x'"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "'web_search_20250305'"),
    ({"tools": [{"name": "f", "input_schema": {}}] * 2}, "two tools are named 'f'"),
    ({"tools": [{"name": "a b", "input_schema": {}}]}, "regex"),
    ({"tool_choice": {"type": "any"}}, "tool_choice"),
    ({"tool_choice": {"type": "tool", "name": "f"}}, "'f'"),
    ({"thinking": {"type": "between_tools"}}, "between_tools"),
    ({"temperature": 1.5}, "temperature"),
    ({"speed": "fast"}, "speed"),
    ({"container": "c"}, "container"),
    ({"mcp_servers": [{}]}, "mcp_servers"),
    ({"thread": {"type": "create"}}, "thread"),
    ({"temprature": 1}, "temprature"),
]


@pytest.mark.parametrize(("change", "words"), REFUSED, ids=[json.dumps(change)[:50] for change, _ in REFUSED])
def test_what_cannot_be_honoured_is_refused_by_name(house: Served, change: dict[str, Any], words: str) -> None:
    reply = post(house, **change)
    assert (reply.status_code, set(reply.json()), reply.json()["type"]) == (400, {"type", "error"}, "error")
    assert reply.json()["error"]["type"] == "invalid_request_error"
    assert words in reply.json()["error"]["message"]


def test_failures_have_anthropics_shape_here_and_openais_elsewhere(house: Served, client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        ask(client, model="claude")
    assert missing.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
    with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: [0-9]+ tokens > [0-9]+ maximum"):
        ask(client, "river stone " * 10_000)
    large = httpx.post(
        f"{house.root}/v1/messages", content=b"a" * 20_000_000, headers={"content-type": "application/json"}
    )
    assert (large.status_code, large.json()["error"]["type"]) == (413, "request_too_large")
    assert httpx.post(f"{house.root}/v1/messages", content=b"{}").json()["type"] == "error"
    assert "param" in post(house, "/v1/chat/completions", temprature=1).json()["error"]


def test_models_are_listed_as_anthropics_client_reads_them_page_by_page(
    house: Served, client: anthropic.Anthropic
) -> None:
    names = [model.id for model in house.client.models.list()]
    strict = anthropic.Anthropic(base_url=house.root, api_key="none", max_retries=0, _strict_response_validation=True)
    assert [model.id for model in strict.models.list()] == names
    assert [model.id for model in strict.models.list(limit=1)] == names  # it asks for the next page by itself
    page = strict.models.list(limit=2, after_id=names[0])
    assert ([model.id for model in page.data], page.has_more, page.last_id) == (names[1:3], True, names[2])
    before = strict.models.list(limit=1, before_id=names[2])
    assert (before.data[0].id, before.has_more, before.first_id) == (names[1], True, names[1])
    one = strict.models.retrieve("gpt-4o-mini")
    assert (one.type, one.id, one.display_name, one.created_at.year > 2025) == ("model", "pocket", "pocket", True)
    assert "object" in httpx.get(f"{house.root}/v1/models/pocket").json()


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"limit": 0}, "'limit' goes from 1"),
        ({"after_id": "nobody"}, "no model 'nobody'"),
        ({"before_id": "echo", "after_id": "echo"}, "send one"),
    ],
)
def test_a_page_that_is_none_is_refused_by_name(house: Served, query: dict[str, Any], words: str) -> None:
    reply = httpx.get(f"{house.root}/v1/models", params=query, headers=VERSION)
    error = reply.json()["error"]
    assert (reply.status_code, error["type"], words in error["message"]) == (400, "invalid_request_error", True)


def test_what_anthropics_clients_ask_elsewhere_fails_in_its_shape_too(
    house: Served, client: anthropic.Anthropic
) -> None:
    reply = httpx.post(f"{house.root}/v1/messages/batches", json={}, headers=VERSION)
    assert (reply.status_code, reply.json()["type"]) == (404, "error")
    assert reply.json()["error"]["type"] == "not_found_error"
    assert reply.json()["error"]["message"].startswith("there is no POST /v1/messages/batches here")
    assert "param" in httpx.post(f"{house.root}/v1/nothing", json={}).json()["error"]
    with pytest.raises(anthropic.NotFoundError, match="nobody"):
        client.models.retrieve("nobody")


def test_a_thought_and_tools_count_in_what_is_counted(client: anthropic.Anthropic) -> None:
    said: Any = [
        {"role": "user", "content": OSLO},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "I look it up.", "signature": "x"},
                {"type": "tool_use", "id": "t1", "name": "get_weather", "input": {"city": "Oslo"}},
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "sunny"}]},
    ]
    count = client.messages.count_tokens
    used = ask(client, said, tools=TOOLS).usage
    assert count(model="pocket", messages=said, tools=TOOLS).input_tokens == (
        used.input_tokens + used.cache_read_input_tokens
    )


def test_fields_that_steer_nothing_here_are_accepted(house: Served) -> None:
    harmless = {name: {"user_id": "me"} for name in protocol.IGNORED}
    headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "x"}
    assert post(house, "/v1/messages?beta=true", headers, **harmless, speed="standard").status_code == 200


def test_every_field_of_anthropics_schema_is_honoured_neutral_or_ignored() -> None:
    rest = protocol.IGNORED | protocol.NEUTRAL.keys()
    known = {field.name for field in msgspec.structs.fields(MessageRequest)}
    assert set(message_create_params.MessageCreateParamsBase.__annotations__) - known - rest == set()
    counted = {field.name for field in msgspec.structs.fields(CountRequest)}
    assert set(message_count_tokens_params.MessageCountTokensParams.__annotations__) - counted - rest == set()
