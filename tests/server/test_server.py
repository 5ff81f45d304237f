"""The HTTP surface, through the openai package where a client would use it and raw where a client would not."""

import asyncio
import json
import re
from typing import Any

import httpx
import openai
import pydantic
import pytest

from tests.serving import Served

FRANCE = [{"role": "user", "content": "What is the capital of France?"}]


def ask(house: Served, content: str = "What is the capital of France?", model: str = "pocket", **options: Any) -> Any:
    options = {"temperature": 0, "max_tokens": 200} | options
    return house.client.chat.completions.create(model=model, messages=[{"role": "user", "content": content}], **options)


def text_of(chunks: Any) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def post(house: Served, body: bytes, path: str = "/v1/chat/completions", **headers: str) -> httpx.Response:
    return httpx.post(
        house.root + path, content=body, headers={"content-type": "application/json"} | headers, timeout=120
    )


# --- answers ---


def test_the_pocket_model_knows_the_capital_of_france(house: Served) -> None:
    reply = ask(house)
    assert reply.choices[0].message.content == "The capital of France is Paris."
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


@pytest.mark.parametrize("model", ["pocket", "pocket-f32", "echo"])
def test_a_stream_says_what_the_whole_answer_says(house: Served, model: str) -> None:
    chunks = list(ask(house, model=model, stream=True, stream_options={"include_usage": True}))
    whole = ask(house, model=model)
    assert text_of(chunks) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert (chunks[-1].choices, chunks[-1].usage.completion_tokens) == ([], whole.usage.completion_tokens)


def test_no_usage_is_streamed_unless_asked_for(house: Served) -> None:
    assert all(chunk.usage is None and chunk.choices for chunk in ask(house, stream=True))


def test_eight_streams_at_once_say_what_one_at_a_time_says(house: Served) -> None:
    questions = [f"What is {n} + {n + 3}?" for n in range(4)] + [f"Count from {n} to {n + 6}" for n in range(4)]
    alone = [ask(house, question, "pocket-f32").choices[0].message.content for question in questions]

    async def one(client: openai.AsyncOpenAI, question: str) -> str:
        stream = await client.chat.completions.create(
            model="pocket-f32",
            messages=[{"role": "user", "content": question}],
            temperature=0,
            max_tokens=200,
            stream=True,
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def crowd() -> list[str]:
        async with house.async_client as client:
            return await asyncio.gather(*(one(client, question) for question in questions))

    assert asyncio.run(crowd()) == alone


def test_an_alias_answers_for_its_model(house: Served) -> None:
    assert "Paris" in ask(house, model="gpt-4o-mini").choices[0].message.content


def test_headers_name_runtime_and_precision(house: Served) -> None:
    body = json.dumps({"model": "pocket", "messages": FRANCE, "max_tokens": 1}).encode()
    headers = post(house, body).headers
    assert (headers["x-enginehouse-runtime"], headers["x-enginehouse-precision"]) == ("llamacpp", "Q4_K_M")


def test_a_thought_comes_apart_from_the_answer(house: Served) -> None:
    thinking = {"chat_template_kwargs": {"enable_thinking": True}}
    message = ask(house, "What is 7 + 5?", extra_body=thinking).choices[0].message
    assert message.reasoning_content
    assert "12" in message.content
    assert "<think>" not in message.content


def test_a_tool_is_called_and_its_result_becomes_an_answer(house: Served) -> None:
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    function = {"name": "get_weather", "description": "Current weather in a city", "parameters": parameters}
    tools: Any = [{"type": "function", "function": function}]
    question = "What is the weather in Oslo?"
    first = ask(house, question, tools=tools).choices[0]
    assert first.finish_reason == "tool_calls"
    (call,) = first.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Oslo"})
    begin, *rest = [
        chunk.choices[0].delta.tool_calls[0]
        for chunk in ask(house, question, tools=tools, stream=True)
        if chunk.choices[0].delta.tool_calls
    ]
    assert (begin.function.name, begin.index) == ("get_weather", 0)
    assert "".join(piece.function.arguments for piece in rest) == call.function.arguments
    messages: list[Any] = [
        {"role": "user", "content": question},
        first.message,
        {"role": "tool", "tool_call_id": call.id, "content": json.dumps({"sky": "sunny", "degrees": 21})},
    ]
    last: Any = house.client.chat.completions.create(model="pocket", messages=messages, tools=tools, temperature=0)
    assert "21" in last.choices[0].message.content


def test_the_prompt_of_a_next_turn_is_read_from_the_cache(house: Served) -> None:
    ask(house, "Repeat: " + "river stone " * 20)
    assert ask(house, "Repeat: " + "river stone " * 20).usage.prompt_tokens_details.cached_tokens > 30


# --- sampling fields ---


def test_text_after_a_stop_string_is_never_sent(house: Served) -> None:
    reply = ask(house, "one STOP two", "echo", stop="STOP")
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == ("one ", "stop")
    assert text_of(ask(house, "one STOP two", "echo", stop=["STOP", "x"], stream=True)) == "one "


def test_max_tokens_and_its_newer_name_end_with_length(house: Served) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        limit: dict[str, Any] = {"max_tokens": None, name: 3}
        reply = ask(house, "Count from 1 to 20", **limit)
        assert (reply.usage.completion_tokens, reply.choices[0].finish_reason) == (3, "length")


def test_a_seed_repeats_an_answer(house: Served) -> None:
    def story() -> str:
        reply = ask(house, "Tell me a story about a fox.", "pocket-f32", temperature=1.5, seed=3, max_tokens=40)
        return str(reply.choices[0].message.content)

    story()  # from here on the prompt is in the cache
    assert story() == story()


def test_the_extensions_are_honoured(house: Served) -> None:
    greedy = ask(house).choices[0].message.content
    assert ask(house, temperature=2, extra_body={"top_k": 1}).choices[0].message.content == greedy
    assert ask(house, temperature=2, extra_body={"min_p": 1.0}).choices[0].message.content == greedy
    assert ask(house, temperature=2, top_p=1e-6).choices[0].message.content == greedy
    reply = ask(house, max_tokens=30, extra_body={"ignore_eos": True})
    assert (reply.usage.completion_tokens, reply.choices[0].finish_reason) == (30, "length")
    assert ask(house, extra_body={"min_tokens": 25}).usage.completion_tokens >= 25
    assert (
        ask(house, "Repeat: lemon lemon", extra_body={"repetition_penalty": 50}).choices[0].message.content
        != "lemon lemon"
    )


# --- log-probabilities and constraints ---


def test_logprobs_come_with_every_token_whole_and_streamed(house: Served) -> None:
    whole = ask(house, logprobs=True, top_logprobs=3).choices[0]
    tokens = whole.logprobs.content
    assert "".join(token.token for token in tokens) == whole.message.content
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 3 for token in tokens)
    assert all(bytes(token.bytes).decode() == token.token for token in tokens)
    chunks = list(ask(house, logprobs=True, stream=True))
    streamed = [one for c in chunks if c.choices[0].logprobs for one in c.choices[0].logprobs.content]
    assert [one.token for one in streamed] == [one.token for one in tokens]
    assert ask(house).choices[0].logprobs is None


class Person(pydantic.BaseModel):
    name: str
    age: int
    city: str


def test_a_schema_is_kept_to_and_parsed_by_the_client(house: Served) -> None:
    reply = house.client.chat.completions.parse(
        model="pocket",
        messages=[{"role": "user", "content": "Make JSON from this: Tom lives in Oslo and is 28 years old."}],
        response_format=Person,
        temperature=0,
        max_tokens=100,
    )
    assert reply.choices[0].message.parsed == Person(name="Tom", age=28, city="Oslo")


def test_a_json_object_is_one_and_a_schema_that_cannot_be_kept_is_refused(house: Served) -> None:
    text = (
        ask(house, "Make JSON from this: Tom is 28.", response_format={"type": "json_object"})
        .choices[0]
        .message.content
    )
    assert isinstance(json.loads(text), dict)
    with pytest.raises(openai.BadRequestError) as caught:
        schema = {"name": "x", "schema": {"type": "colour"}}
        ask(house, response_format={"type": "json_schema", "json_schema": schema})
    assert caught.value.param == "response_format"


# --- embeddings ---


def test_embeddings_are_unit_vectors_alike_for_texts_that_are_alike(house: Served) -> None:
    texts = ["What is the capital of France?", "What is the capital of Norway?", "Count from 1 to 20"]
    reply = house.client.embeddings.create(model="pocket", input=texts)
    a, b, c = (item.embedding for item in reply.data)
    assert sum(x * x for x in a) == pytest.approx(1, abs=1e-3)
    assert dot(a, b) > dot(a, c)
    assert reply.usage.prompt_tokens > 10
    plain = house.client.embeddings.create(model="pocket", input=texts[0], encoding_format="float").data[0].embedding
    assert plain == pytest.approx(a, abs=1e-5)
    short = house.client.embeddings.create(model="pocket", input=texts[0], dimensions=16).data[0].embedding
    assert len(short) == 16
    assert sum(x * x for x in short) == pytest.approx(1, abs=1e-3)


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def test_a_text_that_is_too_long_to_embed_is_refused_with_the_context_and_its_own_length(house: Served) -> None:
    assert house.client.embeddings.create(model="pocket", input="a")
    context = next(m for m in house.client.models.list() if m.id == "pocket").status["context_length"]  # type: ignore[attr-defined]
    with pytest.raises(openai.BadRequestError) as caught:
        house.client.embeddings.create(model="pocket", input=[5] * (context + 3))
    assert f"context length is {context} tokens. However, your input resulted in {context + 3}" in caught.value.message


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": []}, "input"),
        ({"input": [""]}, "input"),
        ({"input": {"a": 1}}, "input"),
        ({"input": [99_999_999]}, "input"),
        ({"dimensions": 100_000}, "dimensions"),
        ({"model": "echo"}, "model"),
        ({"colour": 1}, "colour"),
    ],
)
def test_an_embedding_that_cannot_be_made_is_refused_by_name(house: Served, change: dict[str, Any], param: str) -> None:
    body = {"model": "pocket", "input": "a"} | change
    response = post(house, json.dumps(body).encode(), "/v1/embeddings")
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


# --- refusals ---

GOOD: dict[str, Any] = {"model": "echo", "messages": [{"role": "user", "content": "a"}]}
FUNCTION = {"type": "function", "function": {"name": "f"}}
G = {"type": "function", "function": {"name": "g"}}
ALLOWED = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [G]}}
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"messages": []}, "messages", "length >= 1"),
    ({"messages": "hello"}, "messages", "expected `array`"),
    ({"messages": [{"role": "bob", "content": "a"}]}, "messages[0].role", "'bob'"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "missing"),
    ({"messages": [{"content": "a"}]}, "messages[0].role", "missing required field"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages[0]", "image_url"),
    ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content", "input_audio"),
    ({"max_tokens": -2}, "max_tokens", ">= -1"),
    ({"max_tokens": 0}, "max_tokens", "1 or more"),
    ({"max_tokens": 10**30}, "max_tokens", "int"),
    ({"temperature": -0.1}, "temperature", ">= 0"),
    ({"temperature": "hot"}, "temperature", "expected `float`"),
    ({"top_p": 0}, "top_p", "> 0"),
    ({"n": 129}, "n", "<= 128"),
    ({"tool_choice": "required"}, "tool_choice", "there are no 'tools'"),
    ({"tool_choice": "any"}, "tool_choice", "may be"),
    ({"tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice.function.name", "have: none"),
    ({"tools": [FUNCTION], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice", "have: f"),
    ({"tools": [FUNCTION], "tool_choice": ALLOWED}, "tool_choice.allowed_tools", "no tool 'g'"),
    ({"tools": [FUNCTION, FUNCTION]}, "tools[1].function.name", "two tools are named 'f'"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "regex"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "null"}}}]}, "tools", "object"),
    ({"tools": [{"type": "web_search"}]}, "tools[0]", "web_search"),
    ({"parallel_tool_calls": "no"}, "parallel_tool_calls", "bool"),
    ({"presence_penalty": 1}, "presence_penalty", "not honoured by echo"),
    ({"temprature": 1}, "temprature", "unknown field"),
    ({"logit_bias": {"x": 1}}, "logit_bias", "int"),
    ({"stop": [1]}, "stop", "str"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "param", "words"), REFUSED, ids=[json.dumps(change)[:50] for change, _, _ in REFUSED]
)
def test_what_cannot_be_honoured_is_refused_by_name(
    house: Served, change: dict[str, Any], param: str, words: str
) -> None:
    response = post(house, json.dumps(GOOD | change).encode())
    error = response.json()["error"]
    assert response.status_code == 400
    assert error["type"] == "invalid_request_error"
    assert error["param"].startswith(param)
    assert words in error["message"]


@pytest.mark.parametrize(
    "body", [b"{", b"", b"[]", b"null", b'{"temperature": NaN}', b"\xff\xfe", b"[" * 100_000, b'{"model": "\\ud800"}']
)
def test_what_is_no_json_object_is_refused(house: Served, body: bytes) -> None:
    response = post(house, body)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_a_model_that_is_not_there_is_named(house: Served) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        ask(house, model="gpt-9")
    assert caught.value.code == "model_not_found"
    assert "have: agent, echo" in caught.value.message


@pytest.mark.parametrize("model", ["pocket", "echo"])
def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(house: Served, model: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(house, "river stone " * 10_000, model)
    assert caught.value.code == "context_length_exceeded"
    assert re.search(r"maximum context length is \d+ tokens.*resulted in \d+ tokens", caught.value.message)


def test_failures_outside_our_handlers_have_the_same_shape(house: Served) -> None:
    replies = {
        404: httpx.get(f"{house.root}/v1/nothing"),
        405: httpx.delete(f"{house.root}/v1/models"),
        413: post(house, b"a" * 20_000_000),
        415: post(house, json.dumps(GOOD).encode(), **{"content-type": "text/plain"}),
    }
    for status, reply in replies.items():
        assert reply.status_code == status
        assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


def test_fields_that_steer_nothing_here_are_accepted(house: Served) -> None:
    harmless = {"user": "me", "metadata": {"a": "b"}, "store": False, "n": 1, "service_tier": "auto", "logprobs": False}
    assert post(house, json.dumps(GOOD | harmless | {"temperature": None}).encode()).status_code == 200


# --- other routes ---


def test_models_are_listed_and_looked_up(house: Served) -> None:
    assert [model.id for model in house.client.models.list()] == [
        "pocket",
        "pocket-f32",
        "pocket-int4",
        "echo",
        "agent",
    ]
    ask(house, max_tokens=1)
    assert house.client.models.retrieve("gpt-4o-mini").status["state"] == "loaded"  # type: ignore[attr-defined]
    with pytest.raises(openai.NotFoundError):
        house.client.models.retrieve("nobody/nothing")


def test_health_and_readiness_answer(house: Served) -> None:
    assert httpx.get(f"{house.root}/health").json() == {"status": "ok"}
    assert httpx.get(f"{house.root}/ready").json() == {"status": "ready"}
