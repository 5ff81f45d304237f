"""What other servers' clients send beside OpenAI's fields: honoured, or refused by name."""

import json
import re
from typing import Any

import httpx
import pytest

from enginehouse.runtimes.contract import JSON_OBJECT, Constraint, Facts, Grammar, JsonSchema, Regex
from enginehouse.runtimes.errors import Refused
from enginehouse.runtimes.worker.prompt import render
from enginehouse.server.api.chat import protocol as chat
from enginehouse.server.api.completions import protocol as completions
from tests.serving import Served

HELLO = [{"role": "user", "content": "hello"}]


def job(**fields: Any) -> Any:
    return chat.to_jobs(chat.read(json.dumps({"model": "m", "messages": HELLO} | fields).encode()), "id")[0]


def text_job(**fields: Any) -> Any:
    return completions.to_jobs(completions.read(json.dumps({"model": "m", "prompt": "a"} | fields).encode()), "id")[0]


def chunks(served: Served, route: str = "/v1/chat/completions", **fields: Any) -> list[dict[str, Any]]:
    asked = {"messages": HELLO} if "chat" in route else {"prompt": "hello"}
    body = {"model": "echo", "stream": True} | asked | fields
    with httpx.stream("POST", served.root + route, json=body, timeout=60) as stream:
        assert stream.status_code == 200, stream.read()
        return [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: {")]


def test_minus_one_is_no_limit() -> None:
    assert job(max_tokens=-1, max_completion_tokens=-1, top_k=-1).sampling == job().sampling
    assert text_job(max_tokens=-1, top_k=-1).sampling.max_tokens is None
    assert job(max_tokens=-1, max_completion_tokens=7).sampling.max_tokens == 7


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens", "top_k"])
def test_less_than_minus_one_is_refused(field: str) -> None:
    with pytest.raises(Refused, match=">= -1") as caught:
        job(**{field: -2})
    assert caught.value.param == field


def test_repeat_penalty_is_repetition_penalty() -> None:
    assert job(repeat_penalty=1.2).sampling == job(repetition_penalty=1.2).sampling != job().sampling
    assert text_job(repeat_penalty=1.2, repetition_penalty=1.2).sampling.repetition_penalty == 1.2
    with pytest.raises(Refused) as caught:
        job(repeat_penalty=1.2, repetition_penalty=1.0)
    assert caught.value.param == "repeat_penalty"


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/completions"])
def test_every_chunk_says_what_was_used_so_far_where_that_is_asked_for(house: Served, route: str) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    came = chunks(house, route, stream_options=options, n=2)
    usages = [chunk["usage"] for chunk in came]
    assert all(usage["prompt_tokens"] == 5 for usage in usages)
    counts = [usage["completion_tokens"] for usage in usages]
    assert counts[-1] == 10  # of both
    assert [usage for usage, chunk in zip(counts, came, strict=True) if finish(chunk)] == [5, 5]
    assert all(usage["total_tokens"] == 5 + count for usage, count in zip(usages, counts, strict=True))
    assert "usage" not in chunks(house, route)[-1]


def finish(chunk: dict[str, Any]) -> bool:
    return any(choice["finish_reason"] for choice in chunk["choices"])


# --- constraints ---

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
GBNF = 'root ::= "yes" | "no"'
ASKED: list[tuple[dict[str, Any], Constraint]] = [
    ({"structured_outputs": {"json": SCHEMA}}, JsonSchema(json.dumps(SCHEMA, separators=(",", ":")))),
    ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, JsonSchema(json.dumps(SCHEMA, separators=(",", ":")))),
    ({"structured_outputs": {"regex": "a+"}}, Regex("a+")),
    ({"structured_outputs": {"choice": ["a", "b|c"]}}, Regex("a|b\\|c")),
    ({"structured_outputs": {"grammar": GBNF}}, Grammar(GBNF)),
    ({"structured_outputs": {"json_object": True}}, JSON_OBJECT),
    ({"guided_json": SCHEMA}, JsonSchema(json.dumps(SCHEMA, separators=(",", ":")))),
    ({"guided_regex": "a+"}, Regex("a+")),
    ({"guided_choice": ["a"]}, Regex("a")),
    ({"guided_grammar": GBNF}, Grammar(GBNF)),
    ({"grammar": GBNF}, Grammar(GBNF)),
    ({"json_schema": SCHEMA}, JsonSchema(json.dumps(SCHEMA, separators=(",", ":")))),
]


@pytest.mark.parametrize(("fields", "constraint"), ASKED, ids=[json.dumps(fields)[:40] for fields, _ in ASKED])
def test_a_constraint_is_taken_in_the_words_of_others(fields: dict[str, Any], constraint: Constraint) -> None:
    assert job(**fields).sampling.constraint == constraint
    assert text_job(**fields).sampling.constraint == constraint


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"grammar": GBNF, "json_schema": SCHEMA}, "grammar"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs.choice"),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex"),
        ({"structured_outputs": {"structural_tag": "a"}}, "structured_outputs.structural_tag"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"guided_choice": ["a"] * 1025}, "guided_choice"),
        ({"guided_json": "{"}, "guided_json"),
        ({"grammar": "a" * 32_769}, "grammar"),
    ],
)
def test_constraints_that_cannot_be_kept_to_are_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(Refused) as caught:
        job(**fields)
    assert caught.value.param == param


KEPT_TO: list[tuple[dict[str, Any], str]] = [
    ({"structured_outputs": {"choice": ["a (b)", "c/d."]}}, r"a \(b\)|c/d\."),
    ({"guided_regex": "[xyz]{3}"}, "[xyz]{3}"),
    ({"grammar": 'root ::= greeting ", " ("Ann" | "Bob")\ngreeting ::= "Hi" | "Ho"'}, "H[io], (Ann|Bob)"),
    ({"guided_grammar": 'start: "x" /[0-9]{2}/'}, "x[0-9]{2}"),
]


@pytest.mark.parametrize(("fields", "pattern"), KEPT_TO, ids=[next(iter(fields)) for fields, _ in KEPT_TO])
def test_an_answer_keeps_to_what_was_asked_for(house: Served, fields: dict[str, Any], pattern: str) -> None:
    body = {"model": "pocket", "messages": HELLO, "temperature": 1.5, "seed": 1, "max_tokens": 40} | fields
    reply = httpx.post(f"{house.root}/v1/chat/completions", json=body, timeout=300).json()
    assert re.fullmatch(pattern, reply["choices"][0]["message"]["content"])
    body = {"model": "pocket", "prompt": "hello", "max_tokens": 40} | fields
    reply = httpx.post(f"{house.root}/v1/completions", json=body, timeout=300).json()
    assert re.fullmatch(pattern, reply["choices"][0]["text"])


@pytest.mark.parametrize(
    ("model", "fields", "param"),
    [
        ("echo", {"guided_regex": "a"}, "guided_regex"),
        ("echo", {"structured_outputs": {"grammar": GBNF}}, "structured_outputs.grammar"),
        ("pocket", {"grammar": "root ::= nothing"}, "grammar"),
        ("pocket", {"grammar": 'root ::= "a'}, "grammar"),
        ("pocket", {"guided_regex": "("}, "guided_regex"),
    ],
)
def test_what_the_engine_cannot_enforce_is_refused_by_the_name_that_was_sent(
    house: Served, model: str, fields: dict[str, Any], param: str
) -> None:
    body = {"model": model, "messages": HELLO} | fields
    reply = httpx.post(f"{house.root}/v1/chat/completions", json=body, timeout=300)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), reply.text


# --- where a prompt ends, and thoughts ---

BEGUN = [*HELLO, {"role": "assistant", "content": "The capital of"}]
PLAIN = Facts(64, 1, 256, None, "", "", "cpu", ())


def rendered(**fields: Any) -> str:
    prompt = job(**fields).prompt
    return render(PLAIN, prompt.messages, None, {}, "", prompt.ending)


def test_the_prompt_ends_where_it_is_asked_to() -> None:
    closed = "User: hello\nAssistant: The capital of\n"
    assert rendered(messages=BEGUN) == rendered(messages=BEGUN, continue_final_message=True) == closed.rstrip()
    assert rendered(messages=BEGUN, continue_final_message=False) == closed + "Assistant:"
    assert rendered(messages=BEGUN, add_generation_prompt=True) == closed + "Assistant:"
    assert rendered(messages=BEGUN, add_generation_prompt=False) == closed
    assert rendered(add_generation_prompt=False, continue_final_message=False) == "User: hello\n"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"continue_final_message": True}, "continue_final_message"),
        ({"messages": BEGUN, "continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
        ({"reasoning": {"max_tokens": 100}}, "reasoning.max_tokens"),
        ({"reasoning": {"effort": "low"}, "reasoning_effort": "high"}, "reasoning.effort"),
        ({"reasoning": {"effort": "low", "enabled": False}}, "reasoning.enabled"),
        ({"reasoning": {"colour": 1}}, "reasoning.colour"),
        ({"functions": [{"name": "f"}], "tools": [{"type": "function", "function": {"name": "f"}}]}, "functions"),
        ({"functions": [{"name": "a b"}]}, "functions[0].name"),
        ({"functions": [{"name": "f"}] * 2}, "functions[1].name"),
        ({"functions": [{"name": "f"}], "function_call": {"name": "g"}}, "function_call.name"),
        ({"function_call": {"name": "g"}}, "function_call.name"),
        ({"messages": [*HELLO, {"role": "function", "name": "f", "content": "1"}]}, "messages[1].name"),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(Refused) as caught:
        job(**fields)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("reasoning", "effort"),
    [
        ({"effort": "high"}, "high"),
        ({"enabled": True}, "medium"),
        ({"enabled": False}, "none"),
        ({"exclude": True}, ""),
    ],
)
def test_reasoning_is_reasoning_effort(reasoning: dict[str, Any], effort: str) -> None:
    assert job(reasoning=reasoning).prompt.effort == effort


@pytest.mark.parametrize("stream", [False, True])
def test_thoughts_that_are_excluded_are_not_shown(house: Served, stream: bool) -> None:
    body = {"model": "pocket", "messages": [{"role": "user", "content": "What is 7 + 5?"}], "temperature": 0}
    shown, hidden = (
        httpx.post(
            f"{house.root}/v1/chat/completions",
            json=body | {"stream": stream, "reasoning": {"effort": "high", "exclude": exclude}},
            timeout=300,
        )
        for exclude in (False, True)
    )
    assert (shown.status_code, hidden.status_code) == (200, 200)
    assert "reasoning_content" in shown.text
    assert "reasoning_content" not in hidden.text
    assert '"content":"' in hidden.text


# --- functions ---

WEATHER = {
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CALLED = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}


def test_functions_are_tools_and_their_messages_are_those_of_tools() -> None:
    asked = job(
        messages=[*HELLO, CALLED, {"role": "function", "name": "f", "content": "1"}],
        functions=[WEATHER],
        function_call={"name": "get_weather"},
    ).prompt
    assert (asked.call_required, asked.call_name, asked.parallel_calls) == (True, "get_weather", False)
    assert asked.tools == [{"type": "function", "function": WEATHER}]
    _, call, result = asked.messages
    assert call["tool_calls"][0]["function"] == CALLED["function_call"]
    assert (result["role"], result["tool_call_id"]) == ("tool", call["tool_calls"][0]["id"])
    assert job(functions=[WEATHER], function_call="none").prompt.tools is None


def test_a_function_is_called_in_the_older_shape(house: Served) -> None:
    body: dict[str, Any] = {
        "model": "pocket", "messages": [{"role": "user", "content": "What is the weather in Oslo?"}], "temperature": 0,
        "functions": [WEATHER], "function_call": {"name": "get_weather"}, "max_tokens": 100,
    }  # fmt: skip
    whole = httpx.post(f"{house.root}/v1/chat/completions", json=body, timeout=300).json()["choices"][0]
    call = whole["message"]["function_call"]
    assert (whole["finish_reason"], call["name"]) == ("function_call", "get_weather")
    assert "tool_calls" not in whole["message"]
    came = [chunk["choices"][0] for chunk in chunks(house, **body)]
    pieces = [choice["delta"]["function_call"] for choice in came if "function_call" in choice["delta"]]
    assert pieces[0] == {"name": "get_weather", "arguments": ""}
    assert "".join(piece["arguments"] for piece in pieces) == call["arguments"]
    assert came[-1]["finish_reason"] == "function_call"
