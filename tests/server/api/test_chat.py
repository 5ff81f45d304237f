"""What a chat completion may ask for beyond one plain answer, through the openai package."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import httpx
import msgspec
import openai
import pydantic
import pytest
from openai.types import completion_create_params as text_params
from openai.types import embedding_create_params as embedding_params
from openai.types.chat import completion_create_params as chat_params

from enginehouse.server.api import embeddings
from enginehouse.server.api.chat import protocol as wire
from enginehouse.server.api.completions import protocol as completions_request
from tests.conftest import ENGINES
from tests.serving import Served, serve

API = (Path(__file__).parents[3] / "docs" / "api.md").read_text()
FRANCE: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
FOX: list[Any] = [{"role": "user", "content": "Tell me a story about a fox."}]


def ask(house: Served, model: str = "pocket", messages: Any = FRANCE, **options: Any) -> Any:
    options = {"temperature": 0, "max_tokens": 60} | options
    client = house.client.with_options(timeout=300)  # an engine may have to be built for
    return client.chat.completions.create(model=model, messages=messages, **options)


def refused(house: Served, body: dict[str, Any], path: str = "/v1/chat/completions") -> dict[str, Any]:
    reply = httpx.post(house.root + path, json=body, timeout=60)
    assert reply.status_code == 400, (body, reply.text)
    error: dict[str, Any] = reply.json()["error"]
    return error


# --- several choices ---


def test_every_choice_is_a_whole_answer_and_the_prompt_counts_once(house: Served) -> None:
    one, three = ask(house), ask(house, n=3)
    assert [choice.index for choice in three.choices] == [0, 1, 2]
    assert {choice.message.content for choice in three.choices} == {one.choices[0].message.content}
    assert {choice.finish_reason for choice in three.choices} == {"stop"}
    assert three.usage.prompt_tokens == one.usage.prompt_tokens
    assert three.usage.completion_tokens == 3 * one.usage.completion_tokens


def test_a_choice_is_what_its_own_seed_says_alone(house: Served) -> None:
    options: dict[str, Any] = {"model": "pocket-f32", "messages": FOX, "temperature": 1.5, "max_tokens": 12}
    ask(house, **options)  # from here on the prompt is in the cache
    together = [choice.message.content for choice in ask(house, n=3, seed=5, **options).choices]
    alone = [ask(house, seed=5 + number, **options).choices[0].message.content for number in range(3)]
    assert together == alone
    assert len(set(together)) > 1


@pytest.mark.parametrize("engine", ENGINES)
def test_choices_differ_on_every_engine(engines: Served, engine: str) -> None:
    further = {"ignore_eos": True}
    reply = ask(engines, engine, FOX, n=3, seed=5, temperature=1.5, max_tokens=12, extra_body=further)
    assert len({choice.message.content for choice in reply.choices}) > 1
    assert {choice.finish_reason for choice in reply.choices} == {"length"}
    assert reply.usage.completion_tokens == 36


def test_streamed_choices_come_interleaved_each_with_its_own_end(house: Served) -> None:
    chunks = list(
        ask(house, n=3, stream=True, stream_options={"include_usage": True}, logprobs=True, messages=FOX, max_tokens=20)
    )
    *body, usage = chunks
    order = [chunk.choices[0].index for chunk in body if chunk.choices[0].delta.content]
    assert order != sorted(order)
    for index in range(3):
        own = [chunk.choices[0] for chunk in body if chunk.choices[0].index == index]
        assert own[0].delta.role == "assistant"
        assert [choice.finish_reason for choice in own] == [None] * (len(own) - 1) + ["length"]
        scored = [one.token for choice in own if choice.logprobs for one in choice.logprobs.content]
        assert "".join(scored) == "".join(choice.delta.content or "" for choice in own)
        assert len(scored) == 20
    assert (usage.choices, usage.usage.completion_tokens) == ([], 60)


def test_each_choice_takes_its_place_in_the_queue(folder: Path) -> None:
    with serve(folder, {"echo": {"source": "builtin:echo", "slots": 2}}, max_queue=1) as served:
        assert len(ask(served, "echo", n=3).choices) == 3
        with pytest.raises(openai.RateLimitError):
            ask(served, "echo", n=4)
        assert len(ask(served, "echo", n=3).choices) == 3


def test_a_client_that_leaves_frees_every_choice(house: Served) -> None:
    stream = ask(house, n=8, stream=True, messages=FOX, max_tokens=2000, extra_body={"ignore_eos": True})
    next(iter(stream))
    assert requests(house) == 8
    stream.close()
    assert any(requests(house) == 0 for _ in range(500))


def requests(house: Served) -> int:
    return int(httpx.get(f"{house.root}/v1/models/pocket").json()["status"]["requests"])


class Person(pydantic.BaseModel):
    name: str
    age: int
    city: str


def test_choices_are_parsed_by_the_client_one_by_one(house: Served) -> None:
    async def parsed() -> Any:
        async with house.async_client as client:
            return await client.chat.completions.parse(
                model="pocket",
                messages=[{"role": "user", "content": "Make JSON from this: Tom lives in Oslo and is 28 years old."}],
                response_format=Person,
                temperature=0,
                max_tokens=100,
                n=2,
            )

    reply = asyncio.run(parsed())
    assert [choice.message.parsed for choice in reply.choices] == [Person(name="Tom", age=28, city="Oslo")] * 2


# --- thinking, and going on ---

SUM: list[Any] = [{"role": "user", "content": "What is 7 + 5?"}]


@pytest.mark.parametrize("effort", ["low", "medium", "high"])
def test_an_effort_makes_the_model_think(house: Served, effort: str) -> None:
    reply = ask(house, messages=SUM, reasoning_effort=effort)
    assert reply.choices[0].message.reasoning_content
    assert "12" in reply.choices[0].message.content
    assert reply.usage.completion_tokens_details.reasoning_tokens > 0


@pytest.mark.parametrize("effort", ["none", "minimal"])
def test_no_effort_is_no_thought(house: Served, effort: str) -> None:
    message = ask(house, messages=SUM, reasoning_effort=effort).choices[0].message
    assert "reasoning_content" not in message.model_extra
    assert "12" in message.content


def test_an_effort_that_the_template_does_not_know_is_refused_by_name(house: Served) -> None:
    error = refused(house, {"model": "echo", "messages": FRANCE, "reasoning_effort": "high"})
    assert error["param"] == "reasoning_effort"


def test_a_last_message_of_the_assistant_is_continued(house: Served) -> None:
    begun = [*FRANCE, {"role": "assistant", "content": "The capital of"}]
    assert ask(house, messages=begun).choices[0].message.content == " France is Paris."
    thought = [*SUM, {"role": "assistant", "content": "<think>\n7 + 5 is"}]
    message = ask(house, messages=thought, reasoning_effort="high").choices[0].message
    assert message.reasoning_content.strip() == "12."
    assert message.content == "7 + 5 = 12"


def test_an_empty_last_answer_counts_as_none(house: Served) -> None:
    begun = [*FRANCE, {"role": "assistant", "content": ""}]
    assert (
        ask(house, "pocket", begun).choices[0].message.content
        == ask(house, "pocket", FRANCE).choices[0].message.content
    )


# --- predictions ---


def test_a_prediction_changes_no_answer_and_its_guesses_are_counted(house: Served) -> None:
    plain = ask(house, max_tokens=40)
    for content in (plain.choices[0].message.content, "Something else that nobody said."):
        reply = ask(house, max_tokens=40, extra_body={"prediction": {"type": "content", "content": content}})
        assert reply.choices[0].message.content == plain.choices[0].message.content
        details = reply.usage.completion_tokens_details
        assert 0 <= details.accepted_prediction_tokens < reply.usage.completion_tokens
        assert details.rejected_prediction_tokens >= 0


def test_a_prediction_longer_than_the_context_is_refused_by_name(house: Served) -> None:
    prediction = {"type": "content", "content": "lemon river stone " * 100_000}
    error = refused(house, {"model": "pocket", "messages": FRANCE, "prediction": prediction})
    assert error["param"] == "prediction"


# --- fingerprints ---


def test_a_fingerprint_names_what_answered(house: Served) -> None:
    plain = ask(house, seed=1).system_fingerprint
    streamed = {chunk.system_fingerprint for chunk in ask(house, seed=1, stream=True)}
    assert streamed == {plain}
    assert plain.startswith("fp_")
    assert ask(house, "pocket-f32", max_tokens=1).system_fingerprint != plain


# --- every field of OpenAI's own schema ---

PART = {"image_url": {"url": "data:,"}, "input_audio": {"data": "", "format": "wav"}, "file": {"file_id": "a"}}
# A value of every field that asks for something.
CHAT: dict[str, Any] = {
    "messages": FRANCE, "model": "pocket", "audio": {"voice": "alloy", "format": "wav"}, "frequency_penalty": 0.5,
    "function_call": "auto", "functions": [{"name": "f"}], "logit_bias": {"5": -1}, "logprobs": True,
    "max_completion_tokens": 5, "max_tokens": 5, "metadata": {"a": "b"}, "modalities": ["text", "audio"],
    "moderation": {"model": "m"}, "n": 2, "parallel_tool_calls": False,
    "prediction": {"type": "content", "content": "a"}, "presence_penalty": 0.5, "prompt_cache_key": "a",
    "prompt_cache_options": {"ttl": "30m"}, "prompt_cache_retention": "24h", "reasoning_effort": "low",
    "response_format": {"type": "json_object"}, "safety_identifier": "a", "seed": 1, "service_tier": "flex",
    "stop": ["a"], "store": True, "stream_options": {"include_usage": True}, "temperature": 0.5,
    "tool_choice": "none", "tools": [{"type": "function", "function": {"name": "f"}}], "top_logprobs": 2,
    "top_p": 0.5, "user": "a", "verbosity": "low", "web_search_options": {}, "stream": True,
}  # fmt: skip
TEXT: dict[str, Any] = {
    "model": "pocket", "prompt": "a", "best_of": 2, "echo": True, "frequency_penalty": 0.5, "logit_bias": {"5": -1},
    "logprobs": 2, "max_tokens": 5, "n": 2, "presence_penalty": 0.5, "seed": 1, "stop": "a",
    "stream_options": {"include_usage": True}, "suffix": "a", "temperature": 0.5, "top_p": 0.5, "user": "a",
    "stream": True,
}  # fmt: skip
EMBEDDING: dict[str, Any] = {
    "input": "a", "model": "pocket", "dimensions": 8, "encoding_format": "base64", "user": "a"
}  # fmt: skip
NEEDS: dict[str, dict[str, Any]] = {"top_logprobs": {"logprobs": True}, "stream_options": {"stream": True}}
SCHEMAS: list[tuple[str, Any, dict[str, Any], set[str], Any]] = [
    ("/v1/chat/completions", chat_params.CompletionCreateParamsBase, CHAT, wire.IGNORED, wire.NEUTRAL),
    (
        "/v1/completions",
        text_params.CompletionCreateParamsBase,
        TEXT,
        completions_request.IGNORED,
        completions_request.NEUTRAL,
    ),
    ("/v1/embeddings", embedding_params.EmbeddingCreateParams, EMBEDDING, {"user"}, {}),
]
STRUCTS = {
    "/v1/chat/completions": wire.ChatRequest,
    "/v1/completions": completions_request.CompletionRequest,
    "/v1/embeddings": embeddings.EmbeddingRequest,
}


@pytest.mark.parametrize(("path", "schema", "asks", "ignored", "neutral"), SCHEMAS, ids=list(STRUCTS))
def test_every_field_of_openais_is_honoured_or_refused_by_name_or_listed_as_without_effect(
    house: Served, path: str, schema: Any, asks: dict[str, Any], ignored: set[str], neutral: dict[str, Any]
) -> None:
    assert asks.keys() - {"stream"} == set(schema.__annotations__) - {"stream"}
    honoured = {field.name for field in msgspec.structs.fields(STRUCTS[path])}  # type: ignore[arg-type]
    needed = {field: asks[field] for field in ("messages", "model", "prompt", "input", "max_tokens") if field in asks}
    without_effect = API.partition("without effect")[2].partition(".")[0]
    for field, value in asks.items():
        reply = httpx.post(house.root + path, json={**needed, **NEEDS.get(field, {}), field: value}, timeout=60)
        if reply.status_code == 200:
            assert field in honoured | ignored, field
        else:
            error = reply.json()["error"]
            assert (reply.status_code, error["param"]) == (400, field), reply.text
        assert field not in neutral or reply.status_code == 400, field
        assert field not in ignored or f"`{field}`" in without_effect, field


def test_every_field_of_a_message_is_known_or_refused_by_name(house: Served) -> None:
    from openai.types import chat

    known = {field.name for field in msgspec.structs.fields(wire.Message)}
    for kind in (
        chat.ChatCompletionSystemMessageParam,
        chat.ChatCompletionDeveloperMessageParam,
        chat.ChatCompletionUserMessageParam,
        chat.ChatCompletionAssistantMessageParam,
        chat.ChatCompletionToolMessageParam,
    ):
        assert set(kind.__annotations__) <= known, kind
    values = {"audio": {"id": "a"}, "colour": 1}
    for field, value in values.items():
        message = {"role": "assistant", "content": "a", field: value}
        error = refused(house, {"model": "echo", "messages": [message, *FRANCE]})
        assert error["param"] == f"messages[0].{field}"


@pytest.mark.parametrize("kind", [*PART, "refusal", "video"])
def test_a_part_that_is_not_text_is_refused_by_name(house: Served, kind: str) -> None:
    part = {"type": kind, kind: PART.get(kind, "a")}
    error = refused(
        house, {"model": "echo", "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, part]}]}
    )
    assert error["param"] == "messages[0].content[1]"
    assert kind in error["message"]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"n": 1.5}, "n"),
    ({"store": 1}, "store"),
    ({"verbosity": "high"}, "verbosity"),
    ({"reasoning_effort": "much"}, "reasoning_effort"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "colour": 1}]}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"text": 1}]}]}, "messages[0].content"),
    ({"": 1}, ""),
]


@pytest.mark.parametrize(("change", "param"), REFUSED, ids=[json.dumps(change)[:60] for change, _ in REFUSED])
def test_what_is_not_to_be_had_is_named(house: Served, change: dict[str, Any], param: str) -> None:
    assert refused(house, {"model": "echo", "messages": FRANCE} | change)["param"].startswith(param)


def test_neutral_values_are_taken(house: Served) -> None:
    body = {"verbosity": "medium", "store": False, "n": 1, "service_tier": "auto", "modalities": ["text"]}
    reply = httpx.post(f"{house.root}/v1/chat/completions", json={"model": "echo", "messages": FRANCE} | body)
    assert reply.status_code == 200
    assert re.fullmatch(r"chatcmpl-[0-9a-f]{24}", reply.json()["id"])


def test_as_many_stop_strings_as_are_sent_end_an_answer(house: Served) -> None:
    stops = [f"never {number}" for number in range(15)] + ["three"]
    count = [{"role": "user", "content": "one two three four"}]
    reply = ask(house, "echo", count, stop=stops)
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == ("one two ", "stop")
