"""Tool calling through the openai client, alike on every engine."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pydantic
import pytest

from enginehouse.runtimes.contract import Chat, Job, Sampling
from enginehouse.runtimes.engines import runtimes
from tests.conftest import BUILT
from tests.serving import Served, serve


class GetWeather(pydantic.BaseModel):
    """Current weather in a city."""

    city: str


def tool(name: str, properties: dict[str, Any], **more: Any) -> Any:
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": f"{name}", "parameters": parameters} | more}


CITY = {"city": {"type": "string"}}
WEATHER = tool("get_weather", CITY, description="Current weather in a city")
TIME = tool("get_time", CITY, description="Current time in a city")
OSLO = "What is the weather in Oslo?"
TWO = "What is the weather in Oslo and in Rome?"


@pytest.fixture(scope="module")
def engines(folder: Path) -> Iterator[Served]:
    """One server with the pocket model on each engine."""
    names = [name for name in BUILT if runtimes()[name].unavailable() is None]
    models = {name: {"source": "builtin:pocket", "runtime": name, "precision": "f32", "slots": 2} for name in names}
    with serve(folder, models) as served:
        yield served


@pytest.fixture(params=BUILT)
def ask(request: Any, engines: Served) -> Any:
    """Asks the pocket model on this engine."""
    if reason := runtimes()[request.param].unavailable():
        pytest.skip(reason)

    def ask(content: str | list[Any], **options: Any) -> Any:
        messages: Any = [{"role": "user", "content": content}] if isinstance(content, str) else content
        options = {"tools": [WEATHER, TIME], "temperature": 0, "max_tokens": 200} | options
        client: Any = engines.client.with_options(timeout=300)
        return client.chat.completions.create(model=request.param, messages=messages, **options)

    ask.client, ask.model = engines.client.with_options(timeout=300), request.param  # type: ignore[attr-defined]
    return ask


def calls(reply: Any) -> list[tuple[str, Any]]:
    (choice,) = reply.choices
    assert (choice.finish_reason == "tool_calls") == bool(choice.message.tool_calls)
    found = choice.message.tool_calls or []
    assert len({call.id for call in found}) == len(found)
    assert all(call.id.startswith("call_") and call.type == "function" for call in found)
    return [(call.function.name, json.loads(call.function.arguments)) for call in found]


def test_a_tool_is_called_when_it_helps_and_not_when_it_does_not(ask: Any) -> None:
    assert calls(ask(OSLO)) == [("get_weather", {"city": "Oslo"})]
    plain = ask("What is the capital of France?")
    assert calls(plain) == []
    assert plain.choices[0].message.content == "The capital of France is Paris."
    none = ask(OSLO, tool_choice="none")
    assert calls(none) == []
    assert none.choices[0].message.content


def test_a_required_call_comes_whatever_is_asked_and_a_named_one_is_that_one(ask: Any) -> None:
    france = "What is the capital of France?"
    required = ask(france, tool_choice="required", parallel_tool_calls=False)
    ((name, arguments),) = calls(required)
    assert name in ("get_weather", "get_time")
    assert list(arguments) == ["city"]
    assert required.choices[0].message.content is None
    assert required.usage.completion_tokens > 5
    named = {"type": "function", "function": {"name": "get_time"}}
    assert [name for name, _ in calls(ask(OSLO, tool_choice=named, parallel_tool_calls=False))] == ["get_time"]
    only = {"mode": "required", "tools": [{"type": "function", "function": {"name": "get_time"}}]}
    allowed = {"type": "allowed_tools", "allowed_tools": only}
    assert [name for name, _ in calls(ask(OSLO, tool_choice=allowed, parallel_tool_calls=False))] == ["get_time"]


def test_several_calls_come_unless_only_one_is_allowed(ask: Any) -> None:
    both = [("get_weather", {"city": "Oslo"}), ("get_weather", {"city": "Rome"})]
    assert calls(ask(TWO)) == both
    assert calls(ask(TWO, tool_choice="required")) == both
    assert calls(ask(TWO, parallel_tool_calls=False)) == both[:1]


def test_arguments_keep_to_their_schema_even_when_the_model_is_wild(ask: Any) -> None:
    properties = {"level": {"type": "integer", "minimum": 3, "maximum": 5}, "unit": {"enum": ["kelvin", "celsius"]}}
    strict = tool("set_heat", properties, strict=True)
    strict["function"]["parameters"]["additionalProperties"] = False
    for seed in range(3):
        reply = ask("Make it warm!", tools=[strict], tool_choice="required", temperature=1.5, seed=seed)
        assert calls(reply)
        for _, arguments in calls(reply):
            jsonschema.validate(arguments, strict["function"]["parameters"])


def test_a_stream_brings_each_call_in_pieces_that_add_up(ask: Any) -> None:
    chunks = list(ask(TWO, stream=True, stream_options={"include_usage": True}))
    pieces = [piece for chunk in chunks for choice in chunk.choices for piece in choice.delta.tool_calls or []]
    firsts = [piece for piece in pieces if piece.id]
    assert [(piece.index, piece.function.name) for piece in firsts] == [(0, "get_weather"), (1, "get_weather")]
    assert len({piece.id for piece in firsts}) == 2
    arguments = ["".join(piece.function.arguments for piece in pieces if piece.index == index) for index in (0, 1)]
    assert [json.loads(text) for text in arguments] == [{"city": "Oslo"}, {"city": "Rome"}]
    assert len(pieces) > 6
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] == "tool_calls"
    assert chunks[-1].usage.completion_tokens == ask(TWO).usage.completion_tokens


def test_a_thought_comes_before_the_call(ask: Any) -> None:
    thinking = {"chat_template_kwargs": {"enable_thinking": True}}
    for choice in ("auto", "required"):
        reply = ask(OSLO, extra_body=thinking, tool_choice=choice, parallel_tool_calls=False)
        assert calls(reply) == [("get_weather", {"city": "Oslo"})]
        assert reply.choices[0].message.reasoning_content
        assert reply.usage.completion_tokens_details.reasoning_tokens > 2


def test_an_answer_that_may_call_tools_is_not_resumed_by_another_engine() -> None:
    for tools, resumable in ((None, True), ([WEATHER], False)):
        chat = Chat([{"role": "user", "content": OSLO}], tools)
        assert Job("1", "pocket", chat, Sampling(temperature=0)).resumable == resumable


def test_results_become_an_answer(ask: Any) -> None:
    message = ask(OSLO).choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": '{"sky": "sunny", "degrees": 21}'}
    answer = ask([{"role": "user", "content": OSLO}, message, result])
    assert calls(answer) == []
    assert "21" in answer.choices[0].message.content


def test_the_clients_own_parser_gives_pydantic_objects(ask: Any) -> None:
    completion = ask.client.chat.completions.parse(
        model=ask.model,
        messages=[{"role": "user", "content": OSLO}],
        tools=[openai.pydantic_function_tool(GetWeather, name="get_weather")],
        temperature=0,
    )
    (call,) = completion.choices[0].message.tool_calls
    assert call.function.parsed_arguments == GetWeather(city="Oslo")


def test_an_answer_that_calls_nothing_may_be_held_to_a_schema_beside_tools(ask: Any) -> None:
    schema = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema | {"additionalProperties": False}}}
    assert calls(ask(OSLO, response_format=form)) == [("get_weather", {"city": "Oslo"})]
    france = ask("What is the capital of France?", response_format=form).choices[0]
    if not france.message.tool_calls:
        assert list(json.loads(france.message.content)) == ["answer"]


def test_a_schema_that_cannot_be_enforced_is_refused_by_name_when_it_must_be(ask: Any) -> None:
    hard = tool("hard", {"city": {"type": "string", "not": {"const": "Oslo"}}}, strict=True)
    with pytest.raises(openai.BadRequestError) as refused:
        ask(OSLO, tools=[hard])
    assert refused.value.param == "tools"
    hard["function"]["strict"] = None
    assert ask(OSLO, tools=[hard]).choices[0].finish_reason in ("stop", "tool_calls", "length")
