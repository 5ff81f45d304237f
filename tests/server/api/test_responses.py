"""/v1/responses through the openai package: asked, streamed, gone on from, stored, refused."""

import asyncio
import json
import re
import sqlite3
from pathlib import Path
from typing import Any

import httpx
import msgspec
import openai
import pydantic
import pytest
from openai.types.responses import ResponseItemList, response_create_params

from enginehouse.server.api.responses import protocol
from enginehouse.server.api.responses.protocol import ResponseRequest
from enginehouse.server.api.responses.render import draft
from enginehouse.server.api.responses.routes import save
from enginehouse.server.api.store import FILE, RETENTION_SECONDS, ResponseStore
from tests.server.api.test_dialects import nameless
from tests.serving import Served

FRANCE = "What is the capital of France?"
OSLO = "What is the weather in Oslo?"
TOOLS: list[Any] = [
    {
        "type": "function",
        "name": "get_weather",
        "description": "Current weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        "strict": True,
    }
]


def ask(house: Served, input: Any = FRANCE, model: str = "pocket", **options: Any) -> Any:
    return house.client.responses.create(model=model, input=input, **({"temperature": 0} | options))


def post(house: Served, **fields: Any) -> httpx.Response:
    return httpx.post(f"{house.root}/v1/responses", json={"model": "echo", "input": "a"} | fields, timeout=120)


# --- answers ---


def test_a_response_answers_and_says_how_it_came_about(house: Served) -> None:
    raw = house.client.responses.with_raw_response.create(model="gpt-4o-mini", input=FRANCE, temperature=0)
    reply: Any = raw.parse()
    assert (reply.output_text, reply.status, reply.model) == (
        "The capital of France is Paris.",
        "completed",
        "gpt-4o-mini",
    )
    assert reply.usage.total_tokens == reply.usage.input_tokens + reply.usage.output_tokens
    assert raw.headers["x-enginehouse-runtime"] == "llamacpp"


CASES: dict[str, dict[str, Any]] = {
    "text": {"input": FRANCE},
    "tool": {"input": OSLO, "tools": TOOLS},
    "thought": {"input": "What is 7 + 5?", "reasoning": {"effort": "medium"}},
    "logprobs": {"input": FRANCE, "include": ["message.output_text.logprobs"], "top_logprobs": 2},
    "json": {"input": "Make JSON from this: Tom is 28.", "text": {"format": {"type": "json_object"}}},
}


@pytest.mark.parametrize("case", CASES)
def test_a_stream_ends_with_the_response_that_is_given_whole(house: Served, case: str) -> None:
    asked: dict[str, Any] = {"model": "pocket-f32", "temperature": 0} | CASES[case]
    whole = house.client.responses.create(**asked)
    with house.client.responses.stream(**asked) as stream:
        events = list(stream)
        final: Any = stream.get_final_response()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    apart = {"created_at", "usage"}
    assert nameless({k: v for k, v in final.to_dict().items() if k not in apart}) == nameless(
        {k: v for k, v in whole.to_dict().items() if k not in apart}
    )
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert whole.output


def test_the_asynchronous_client_streams_too(house: Served) -> None:
    async def text() -> str:
        async with house.async_client as client:
            stream = await client.responses.create(model="pocket", input=FRANCE, temperature=0, stream=True)
            return "".join([event.delta async for event in stream if event.type == "response.output_text.delta"])

    assert asyncio.run(text()) == "The capital of France is Paris."


def test_instructions_and_developer_messages_make_one_system_message(house: Served) -> None:
    messages = [{"role": "developer", "content": "Be kind."}, {"role": "user", "content": "Who are you?"}]
    apart = ask(house, messages, instructions="Be brief.").usage.input_tokens
    together = ask(house, "Who are you?", instructions="Be brief.\n\nBe kind.").usage.input_tokens
    assert apart == together


def test_max_output_tokens_leaves_a_response_incomplete(house: Served) -> None:
    reply = ask(house, "Count from 1 to 20", max_output_tokens=3)
    assert (reply.status, reply.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (reply.output[0].status, reply.usage.output_tokens) == ("incomplete", 3)
    *_, last = ask(house, "Count from 1 to 20", max_output_tokens=3, stream=True)
    assert last.type == "response.incomplete"


def test_a_thought_is_an_item_of_its_own_and_can_be_passed_back(house: Served) -> None:
    reply = ask(house, "What is 7 + 5?", reasoning={"effort": "high", "summary": "auto"})
    thought, message = reply.output
    assert (thought.type, message.type) == ("reasoning", "message")
    assert thought.content[0].text
    assert reply.usage.output_tokens_details.reasoning_tokens > 0
    again = ask(
        house, [{"role": "user", "content": "What is 7 + 5?"}, *reply.output, {"role": "user", "content": "A?"}]
    )
    assert again.status == "completed"
    assert [item.type for item in ask(house, "What is 7 + 5?", reasoning={"effort": "none"}).output] == ["message"]


def test_logprobs_come_with_every_token_of_the_text(house: Served) -> None:
    (part,) = ask(house, include=["message.output_text.logprobs"], top_logprobs=2).output[0].content
    assert "".join(token.token for token in part.logprobs) == part.text
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 2 for token in part.logprobs)


class Person(pydantic.BaseModel):
    name: str
    age: int
    city: str


def test_a_schema_is_kept_to_and_parsed_by_the_client_whole_and_streamed(house: Served) -> None:
    asked: dict[str, Any] = {
        "model": "pocket",
        "input": "Make JSON from this: Tom lives in Oslo and is 28 years old.",
        "text_format": Person,
        "temperature": 0,
    }
    tom = Person(name="Tom", age=28, city="Oslo")
    assert house.client.responses.parse(**asked).output_parsed == tom
    with house.client.responses.stream(**asked) as stream:
        assert stream.get_final_response().output_parsed == tom


# --- tools ---


def test_a_function_is_called_and_its_output_becomes_an_answer(house: Served) -> None:
    first = ask(house, OSLO, tools=TOOLS)
    (call,) = first.output
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "get_weather", {"city": "Oslo"})
    output = {"type": "function_call_output", "call_id": call.call_id, "output": '{"sky": "sunny", "degrees": 21}'}
    stateless = ask(house, [{"role": "user", "content": OSLO}, call, output], tools=TOOLS, store=False)
    stored = ask(house, [output], tools=TOOLS, previous_response_id=first.id)
    assert "21" in stateless.output_text
    assert stored.output_text == stateless.output_text


def test_a_choice_of_tools_reaches_the_model(house: Served) -> None:
    def chat(**fields: Any) -> Any:
        asked = protocol.read(
            json.dumps({"model": "m", "input": "a", "tools": [*TOOLS, TOOLS[0] | {"name": "f"}]} | fields).encode()
        )
        return protocol.to_job(asked, [], protocol.items_of("a"), "id").prompt

    assert [tool["function"]["name"] for tool in chat().tools] == ["get_weather", "f"]
    assert chat(tool_choice="none").tools is None
    assert chat(tool_choice="required").call_required
    named = chat(tool_choice={"type": "function", "name": "f"}, parallel_tool_calls=False)
    assert (named.call_required, named.call_name, named.parallel_calls) == (True, "f", False)
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "f"}]}
    some = chat(tool_choice=allowed)
    assert ([tool["function"]["name"] for tool in some.tools], some.call_required) == (["f"], True)


def test_a_custom_tool_takes_text_that_matches_its_regex_where_the_engine_enforces_it(house: Served) -> None:
    """No model would say this by itself."""
    form = {"type": "grammar", "syntax": "regex", "definition": '[0-9]{4}"\n[a-c]+ end'}
    tool = {"type": "custom", "name": "note", "description": "Writes a note.", "format": form}
    reply = ask(house, OSLO, tools=[tool], tool_choice={"type": "custom", "name": "note"}, max_output_tokens=100)
    (call,) = reply.output
    assert (call.type, call.name) == ("custom_tool_call", "note")
    assert re.fullmatch('[0-9]{4}"\n[a-c]+ end', call.input)


def test_a_lark_grammar_is_told_to_the_model_in_words() -> None:
    form = {"type": "grammar", "syntax": "lark", "definition": "start: /x+/"}
    tools = [{"type": "custom", "name": "note", "format": form}, {"type": "custom", "name": "free"}]
    asked = protocol.read(json.dumps({"model": "m", "input": "a", "tools": tools}).encode())
    prompt: Any = protocol.to_job(asked, [], protocol.items_of("a"), "id").prompt
    note, free = (tool["function"]["parameters"]["properties"]["input"] for tool in prompt.tools)
    assert note["description"].endswith("It must match this lark grammar:\nstart: /x+/")
    assert "grammar" not in free["description"]


def test_a_later_item_may_bring_a_tool_again(house: Served) -> None:
    def bringing(about: str) -> dict[str, Any]:
        return {"type": "additional_tools", "role": "developer", "tools": [TOOLS[0] | {"description": about}]}

    asked = protocol.read(json.dumps({"model": "m", "input": []}).encode())
    items = protocol.items_of([bringing("old"), {"role": "user", "content": "a"}, bringing("new")])
    prompt: Any = protocol.to_job(asked, [], items, "id").prompt
    assert [tool["function"]["description"] for tool in prompt.tools] == ["new"]


def test_penalties_reach_the_engine_and_the_response_shows_them(house: Served) -> None:
    whole = ask(house, "Count from 1 to 20.", extra_body={"presence_penalty": 2, "frequency_penalty": 2})
    plain = ask(house, "Count from 1 to 20.")
    assert whole.output_text != plain.output_text
    shown = whole.to_dict()
    assert (shown["presence_penalty"], shown["frequency_penalty"]) == (2.0, 2.0)


def test_a_response_has_the_fields_that_open_responses_wants_also_in_events(house: Served) -> None:
    wanted = {"presence_penalty": 0.0, "frequency_penalty": 0.0, "max_tool_calls": None, "safety_identifier": None}
    wanted["prompt_cache_key"] = None
    sent = {"max_tool_calls": 3, "safety_identifier": "me", "prompt_cache_key": "k", "text": {"verbosity": "low"}}
    for given, expected in (({}, wanted), (sent, wanted | sent)):
        shown = post(house, **given).json()
        assert {key: shown[key] for key in wanted} == {key: expected[key] for key in wanted}
        for line in post(house, stream=True, **given).text.splitlines():
            if line.startswith("data: {") and "response" in (event := json.loads(line[6:])):
                assert {key: event["response"][key] for key in wanted} == {key: expected[key] for key in wanted}
    assert shown["text"]["verbosity"] == "low"


def test_an_effort_is_a_hint_where_the_template_has_no_switch(house: Served) -> None:
    assert ask(house, model="echo", reasoning={"effort": "medium", "context": "all_turns"}).output_text == FRANCE


# --- stored responses ---


def test_a_response_that_goes_on_from_another_is_asked_as_if_all_had_been_sent(house: Served) -> None:
    first = ask(house, "My name is Anna.")
    second = ask(house, "What is my name?", previous_response_id=first.id)
    items = [
        {"role": "user", "content": "My name is Anna."},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "What is my name?"},
    ]
    whole = ask(house, items)
    assert (second.output_text, second.usage.input_tokens) == (whole.output_text, whole.usage.input_tokens)
    third = ask(house, "Who are you?", previous_response_id=second.id)
    assert third.usage.input_tokens > second.usage.input_tokens


def test_instructions_of_a_previous_response_are_not_carried_over(house: Served) -> None:
    first = ask(house, instructions="You are a pirate with a long story about a ship and a parrot.")
    second = ask(house, "Who are you?", previous_response_id=first.id)
    plain = ask(house, "Who are you?", previous_response_id=ask(house).id)
    assert second.usage.input_tokens == plain.usage.input_tokens


def test_a_stored_response_is_retrieved_as_it_was_given_and_deleted(house: Served) -> None:
    reply = ask(house, metadata={"topic": "capitals"})
    again = house.client.responses.retrieve(reply.id)
    assert again.to_dict() == reply.to_dict()
    assert again.metadata == {"topic": "capitals"}
    house.client.responses.delete(reply.id)
    with pytest.raises(openai.NotFoundError, match="not found"):
        house.client.responses.retrieve(reply.id)
    with pytest.raises(openai.NotFoundError):
        house.client.responses.delete(reply.id)
    with pytest.raises(openai.BadRequestError) as caught:
        ask(house, previous_response_id=reply.id)
    assert (caught.value.param, caught.value.code) == ("previous_response_id", "previous_response_not_found")


def test_a_streamed_response_is_stored_and_one_with_store_false_is_not(house: Served) -> None:
    for options in ({}, {"stream": True}):
        for store in (True, False):
            reply = ask(house, model="echo", store=store, **options)
            id = list(reply)[-1].response.id if options else reply.id
            url = f"{house.root}/v1/responses/{id}"
            assert httpx.get(url).status_code == (200 if store else 404)


def test_input_items_are_listed_page_by_page(house: Served) -> None:
    reply = ask(house, [{"role": "user", "content": f"word {n}"} for n in range(5)], "echo")
    pages: Any = house.client.responses.input_items.list(reply.id, limit=2, order="asc")
    listed = [item.content[0].text for item in pages]
    assert listed == [f"word {n}" for n in range(5)]
    url = f"{house.root}/v1/responses/{reply.id}/input_items"
    newest: Any = ResponseItemList.model_validate(httpx.get(url).json())
    assert newest.data[0].content[0].text == "word 4"
    assert httpx.get(url, params={"limit": 0}).json()["error"]["param"] == "limit"
    assert httpx.get(url, params={"after": "x"}).json()["error"]["param"] == "after"


def test_an_item_can_be_sent_by_its_id_alone(house: Served) -> None:
    first = ask(house)
    said = [{"role": "user", "content": FRANCE}, {"type": "item_reference", "id": first.output[0].id}]
    referred = ask(house, [*said, {"role": "user", "content": "Who are you?"}])
    assert referred.usage.input_tokens == ask(house, "Who are you?", previous_response_id=first.id).usage.input_tokens


def test_the_tokens_of_an_input_are_counted_as_an_answer_would(house: Served) -> None:
    counted = house.client.responses.input_tokens.count(model="pocket", input=FRANCE, instructions="Be brief.")
    assert counted.input_tokens == ask(house, instructions="Be brief.").usage.input_tokens


def stored(id: str) -> dict[str, Any]:
    return draft(ResponseRequest("m", "a"), id, 1)


def test_responses_older_than_thirty_days_go_when_one_is_stored(tmp_path: Path) -> None:
    store = ResponseStore(str(tmp_path))
    store.save("", stored("resp_old"), protocol.items_of("a"))
    store.save("", stored("resp_young"), [])
    with sqlite3.connect(tmp_path / FILE) as db:
        db.execute("update responses set at = at - ? where id = 'resp_old'", (RETENTION_SECONDS + 1,))
    store.save("", stored("resp_new"), [])
    assert [bool(store.response("", f"resp_{name}")) for name in ("old", "young", "new")] == [False, True, True]
    assert store.given("", "resp_old") == []


def test_an_answer_that_cannot_be_stored_is_given_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    response = asyncio.run(save(ResponseStore(str(tmp_path / "file")), "", [], stored("resp_1")))
    assert response["store"] is False


# --- refusals ---

REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"input": 1}, "input", "expected"),
    ({"input": []}, "input", "empty"),
    ({"input": [{"role": "bob", "content": "a"}]}, "input[0].role", "'bob'"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content", "input_image"),
    ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content", "input_file"),
    ({"input": [{"type": "web_search_call"}]}, "input[0].type", "web_search_call"),
    ({"input": [{"type": "function_call_output", "call_id": "x", "output": "a"}]}, "input[0].call_id", "'x'"),
    ({"input": [{"type": "item_reference", "id": "msg_x"}]}, "input", "msg_x"),
    ({"input": [{}]}, "input[0]", "no type"),
    ({"input": [{"role": "user", "content": "a", "id": 5}]}, "input[0].id", "int"),
    ({"previous_response_id": ""}, "previous_response_id", "not found"),
    ({"previous_response_id": "resp_x"}, "previous_response_id", "not found"),
    ({"max_output_tokens": 0}, "max_output_tokens", ">= 1"),
    ({"temperature": 3}, "temperature", "<= 2"),
    ({"top_logprobs": 21}, "top_logprobs", "<= 20"),
    ({"include": ["file_search_call.results"]}, "include[0]", "file_search_call.results"),
    ({"text": {"verbosity": "highest"}}, "text.verbosity", "'highest'"),
    ({"reasoning": {"context": "some"}}, "reasoning.context", "'some'"),
    ({"presence_penalty": 3}, "presence_penalty", "<= 2"),
    ({"frequency_penalty": 1}, "frequency_penalty", "not honoured"),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type", "'xml'"),
    ({"reasoning": {"mode": "pro"}}, "reasoning.mode", "'pro'"),
    ({"tools": [{"type": "telepathy"}]}, "tools[0].type", "'telepathy'"),
    ({"tools": [{"type": []}]}, "tools[0]", "expected `str`"),
    ({"tools": [{}]}, "tools[0]", "type"),
    ({"tools": [{"type": "custom", "name": "f", "format": {"type": "text", "x": 1}}]}, "tools[0].format.x", "unknown"),
    ({"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "mcp"}]}]}, "tools[0].tools[0].type", "'mcp'"),
    ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "tool_choice", "none"),
    ({"tools": [{"type": "web_search"}], "tool_choice": {"type": "web_search"}}, "tool_choice", "web_search"),
    ({"input": [{"type": "additional_tools", "tools": [1]}]}, "input[0].tools", "objects"),
    ({"input": [{"type": "additional_tools", "tools": [{"type": "custom"}]}]}, "input[0].tools[0].name", "missing"),
    ({"input": [{"type": "custom_tool_call_output", "call_id": "x", "output": "a"}]}, "input[0].call_id", "'x'"),
    ({"input": [{"type": "custom_tool_call", "call_id": "x", "name": "f"}]}, "input[0].input", "missing"),
    ({"tools": [{"type": "function", "name": "f", "parameters": {}}] * 2}, "tools[1].function.name", "two tools"),
    ({"tool_choice": "required"}, "tool_choice", "none"),
    ({"tool_choice": {"type": "function", "name": "f"}}, "tool_choice", "'f'"),
    ({"tool_choice": {"type": "file_search"}}, "tool_choice.type", "file_search"),
    ({"truncation": "middle"}, "truncation", "middle"),
    ({"background": True, "store": False}, "background", "'store'"),
    ({"metadata": {"a": 1}}, "metadata", "expected `str`"),
    ({"temprature": 1}, "temprature", "unknown field"),
]


@pytest.mark.parametrize(
    ("change", "param", "words"), REFUSED, ids=[json.dumps(change)[:50] for change, _, _ in REFUSED]
)
def test_what_cannot_be_honoured_is_refused_by_name(
    house: Served, change: dict[str, Any], param: str, words: str
) -> None:
    response = post(house, **change)
    error = response.json()["error"]
    assert (response.status_code, error["type"]) == (400, "invalid_request_error")
    assert error["param"].startswith(param)
    assert words in error["message"]


@pytest.mark.parametrize("field", [name for name, allowed in protocol.NEUTRAL.items() if not allowed])
def test_fields_for_what_is_not_here_are_refused_by_name(house: Served, field: str) -> None:
    assert post(house, **{field: {"id": "x"}}).json()["error"]["param"] == field


def test_fields_that_steer_nothing_here_are_accepted(house: Served) -> None:
    harmless = dict.fromkeys(protocol.IGNORED, "x") | {
        "include": ["reasoning.encrypted_content"],
        "stream_options": {"include_obfuscation": True},
        "background": False,
        "truncation": "disabled",
        "text": {"verbosity": "medium"},
        "conversation": None,
    }
    assert post(house, **harmless).status_code == 200


def test_every_field_of_openais_schema_is_honoured_neutral_or_ignored() -> None:
    known = {field.name for field in msgspec.structs.fields(ResponseRequest)}
    known |= protocol.IGNORED | protocol.NEUTRAL.keys()
    fields = set(response_create_params.ResponseCreateParamsBase.__annotations__) | {"stream"}
    elsewhere = {"presence_penalty", "frequency_penalty", "client_metadata"}  # in Open Responses' schema, and Codex's
    assert fields | elsewhere == known


def test_a_model_that_is_not_there_and_a_prompt_too_long_are_told_as_in_chat(house: Served) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        ask(house, model="gpt-9")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        ask(house, "river stone " * 10_000)
    assert (long.value.code, long.value.param) == ("context_length_exceeded", "input")
    assert "your input resulted in" in long.value.message
