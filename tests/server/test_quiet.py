"""No stream is silent while its prompt is read; and what is refused is refused before it begins."""

import json
import time
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest

from tests.serving import Served, serve

LETTERS = 12_000  # each a token of echo's
MESSAGES = [{"role": "user", "content": "a" * LETTERS}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 3},
    "/v1/completions": {"prompt": "a" * LETTERS, "max_tokens": 3},
    "/v1/responses": {"input": MESSAGES, "max_output_tokens": 3, "store": False},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 3},
}
FIRST_WORD = ('"content":"a', '"text":"a', '"delta":"a')
AT_ONCE_SECONDS = 1.5


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Reads 4,000 tokens of a prompt in a second."""
    slow = {"source": "builtin:echo", "context": 16_000, "options": {"echo": {"prefill_rate": 4000}}}
    with serve(tmp_path_factory.mktemp("slow"), {"slow": slow}) as served:
        served.client.completions.create(model="slow", prompt="a", max_tokens=1)  # it is loaded
        yield served


@pytest.fixture(scope="module")
def slow_to_write(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Writes 100 tokens in a second."""
    slow = {"source": "builtin:echo", "context": 16_000, "options": {"echo": {"decode_rate": 100}}}
    with serve(tmp_path_factory.mktemp("slow-to-write"), {"slow": slow}) as served:
        yield served


def lines(served: Served, route: str, **more: Any) -> Iterator[tuple[float, str]]:
    """Of a stream, each with the seconds since it was asked for; the first is the head's."""
    body = {"model": "slow", "stream": True} | BODIES[route] | more
    began = time.monotonic()
    with httpx.stream("POST", served.root + route, json=body, timeout=60) as stream:
        assert stream.status_code == 200
        yield time.monotonic() - began, json.dumps(dict(stream.headers))
        for line in stream.iter_lines():
            yield time.monotonic() - began, line


@pytest.mark.parametrize("route", BODIES)
def test_the_head_comes_at_once_and_then_how_far_the_prompt_is_read(slow: Served, route: str) -> None:
    came = list(lines(slow, route))
    first_word = next(at for at, line in came if any(word in line for word in FIRST_WORD))
    comments = [(at, line) for at, line in came if line.startswith(": reading the prompt, ")]
    assert came[0][0] < AT_ONCE_SECONDS < 3 <= first_word
    assert "x-enginehouse-runtime" in came[0][1]
    assert comments
    assert comments[0][0] < first_word
    read, of, total, tokens = comments[0][1].removeprefix(": reading the prompt, ").split()
    assert 0 < int(read.replace(",", "")) < LETTERS
    assert (of, total, tokens) == ("of", "12,000", "tokens")


def test_a_message_begins_with_the_count_of_its_prompt_and_pings_while_it_is_read(slow: Served) -> None:
    events = [line.removeprefix("event: ") for _, line in lines(slow, "/v1/messages") if line.startswith("event: ")]
    assert events[:2] == ["message_start", "ping"]
    assert events.index("content_block_start") > 2
    assert {*events[1 : events.index("content_block_start")]} == {"ping"}
    client = anthropic.Anthropic(base_url=slow.root, api_key="none")
    with client.messages.stream(model="slow", **BODIES["/v1/messages"]) as stream:
        started = next(event for event in stream if event.type == "message_start")
        assert started.message.usage.input_tokens == LETTERS
        assert stream.get_final_message().usage.input_tokens == LETTERS


def test_a_response_is_created_and_in_progress_at_once(slow: Served) -> None:
    came = [(at, line) for at, line in lines(slow, "/v1/responses") if line.startswith("event: ")]
    assert [line for _, line in came[:2]] == ["event: response.created", "event: response.in_progress"]
    assert came[1][0] < AT_ONCE_SECONDS


def test_who_asks_for_the_progress_gets_it_as_llama_server_gives_it(slow: Served) -> None:
    came = [
        line for _, line in lines(slow, "/v1/chat/completions", return_progress=True) if '"prompt_progress"' in line
    ]
    progress = [json.loads(line.removeprefix("data: "))["prompt_progress"] for line in came]
    assert all(one["total"] == LETTERS and one["cache"] == 0 for one in progress)
    assert len(progress) > 2
    assert [one["processed"] for one in progress] == sorted(one["processed"] for one in progress)
    assert progress[-1]["processed"] == LETTERS
    assert progress[-1]["time_ms"] >= 2900


def test_who_does_not_ask_for_the_progress_gets_none(slow: Served) -> None:
    assert not [line for _, line in lines(slow, "/v1/chat/completions") if "prompt_progress" in line]


CALL = f"<tool_call>{json.dumps({'name': 'note', 'arguments': {'text': 'a' * 300}})}</tool_call>"
NOTE = {"name": "note", "parameters": {"type": "object", "properties": {"text": {"type": "string"}}}}


def test_a_call_that_goes_out_whole_is_no_silence(slow_to_write: Served) -> None:
    body = {"model": "slow", "messages": [{"role": "user", "content": CALL}]}
    body |= {"tools": [{"type": "function", "function": NOTE}]}
    with httpx.stream("POST", f"{slow_to_write.root}/api/chat", json=body, timeout=60) as stream:
        came = [json.loads(line) for line in stream.iter_lines()]
    called = next(index for index, one in enumerate(came) if one["message"].get("tool_calls"))
    assert called >= 1
    assert [one["message"]["content"] for one in came[:called]] == [""] * called
    assert came[called]["message"]["tool_calls"][0]["function"]["arguments"] == {"text": "a" * 300}


def test_several_answers_wait_for_one_another_and_say_so(slow: Served) -> None:
    came = list(lines(slow, "/v1/chat/completions", n=2, messages=[{"role": "user", "content": "a" * 6000}]))
    assert came[0][0] < AT_ONCE_SECONDS
    assert sum('"finish_reason":"length"' in line for _, line in came) == 2


@pytest.mark.parametrize("route", BODIES)
def test_a_prompt_that_is_too_long_is_refused_before_a_stream_begins(slow: Served, route: str) -> None:
    long = [{"role": "user", "content": "a" * 16_000}]
    change: dict[str, Any] = {"messages": long} if "messages" in BODIES[route] else {"input": long}
    change = {"prompt": "a" * 16_000} if route == "/v1/completions" else change
    reply = httpx.post(slow.root + route, json={"model": "slow", "stream": True} | BODIES[route] | change)
    assert reply.status_code == 400
    assert "16000 tokens" in reply.json()["error"]["message"]


def test_a_deadline_that_comes_while_the_prompt_is_read_ends_the_stream_with_an_error(slow: Served) -> None:
    body = {"model": "slow", "stream": True} | BODIES["/v1/chat/completions"]
    with httpx.stream(
        "POST", f"{slow.root}/v1/chat/completions", json=body, headers={"x-request-timeout": "1"}, timeout=60
    ) as stream:
        assert stream.status_code == 200
        assert "request_timeout" in stream.read().decode()
    assert slow.client.completions.create(model="slow", prompt="b", max_tokens=1).choices[0].text == "b"


def test_a_schema_that_cannot_be_enforced_is_refused_before_a_stream_begins(house: Served) -> None:
    house.client.completions.create(model="pocket", prompt="a", max_tokens=1)  # it is loaded
    bad = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "nothing"}}}
    body = {"model": "pocket", "messages": [{"role": "user", "content": "a"}], "stream": True, "response_format": bad}
    assert httpx.post(f"{house.root}/v1/chat/completions", json=body, timeout=120).status_code == 400


def test_llamacpp_says_how_far_a_prompt_is_read(house: Served) -> None:
    words = " ".join(f"river {number} stone" for number in range(500))
    body = {"model": "pocket", "messages": [{"role": "user", "content": words}], "stream": True, "max_tokens": 2}
    body |= {"return_progress": True}
    with httpx.stream("POST", f"{house.root}/v1/chat/completions", json=body, timeout=120) as stream:
        assert stream.status_code == 200
        events = [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: {")]
    progress = [event["prompt_progress"] for event in events if "prompt_progress" in event]
    assert progress[-1]["processed"] == progress[-1]["total"] > 1000
