"""A person is answered beside an agent's batch, and an answer that comes too late ends."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serving import Served, serve

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ENDLESS: dict[str, Any] = {"temperature": 0, "ignore_eos": True}  # to the end of the context
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": QUESTION},
    "/v1/completions": {"prompt": "one"},
    "/v1/responses": {"input": "one"},
    "/v1/messages": {"messages": QUESTION, "max_tokens": 5},
    "/v1/embeddings": {"input": "one"},
    "/v1/rerank": {"query": "one", "documents": ["two"]},
    "/tokenize": {"prompt": "one"},
}
LONG = {"type": "object", "properties": {"a": {"type": "string", "minLength": 3000}}, "required": ["a"]}
LEFT_SECONDS = 30.0


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    """One slot: who holds it, keeps others out."""
    models = {"pocket": {"source": "builtin:pocket", "runtime": "llamacpp", "slots": 1, "precision": "int8"}}
    keys: dict[str, Any] = {"api_keys": ["person"], "batch_keys": ["agent"]}
    with serve(folder, models, max_queue=8, **keys) as served:
        assert ask(served).status_code == 200  # it is loaded
        yield served


def ask(served: Served, route: str = "/v1/chat/completions", key: str = "person", **more: Any) -> httpx.Response:
    headers = {"x-api-key": key} | more.pop("headers", {})
    return httpx.post(
        served.root + route, json={"model": "pocket"} | BODIES[route] | more, headers=headers, timeout=120
    )


@contextmanager
def streaming(served: Served, key: str = "person", **more: Any) -> Iterator[Iterator[str]]:
    """The lines of a chat's stream of which the first text has come."""
    headers = {"x-api-key": key} | more.pop("headers", {})
    body = {"model": "pocket", "messages": QUESTION, "stream": True} | more
    with httpx.stream("POST", f"{served.root}/v1/chat/completions", json=body, headers=headers, timeout=120) as stream:
        lines = stream.iter_lines()
        assert stream.status_code == 200
        next(line for line in lines if '"content":"' in line and '"content":""' not in line)
        yield lines


def under_way(served: Served) -> int:
    status = httpx.get(f"{served.root}/v1/models/pocket", headers={"x-api-key": "person"}).json()["status"]
    return int(status["requests"])


def wait_until_nothing_is(served: Served) -> None:
    until = time.monotonic() + LEFT_SECONDS  # the server learns a moment later that a client has left
    while under_way(served):
        assert time.monotonic() < until, "requests under way that nobody waits for"


@pytest.mark.parametrize("route", BODIES)
@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("x-priority", "high"),
        ("x-priority", ""),
        ("x-request-timeout", "0"),
        ("x-request-timeout", "-1"),
        ("x-request-timeout", "soon"),
        ("x-request-timeout", "inf"),
        ("x-request-timeout", "1e3"),
    ],
)
def test_a_header_that_means_nothing_is_refused_by_name(served: Served, route: str, header: str, value: str) -> None:
    refused = ask(served, route, headers={header: value})
    assert refused.status_code == 400
    assert header in refused.json()["error"]["message"]
    assert refused.json()["error"].get("param", header) == header


@pytest.mark.parametrize("named", [{"headers": {"x-priority": "batch"}}, {"key": "agent"}])
def test_a_person_is_answered_while_a_batch_waits_for_the_same_slot(served: Served, named: dict[str, Any]) -> None:
    with streaming(served, n=2, **ENDLESS, **named):
        answer = ask(served, temperature=0)
        assert under_way(served) == 2
    assert "Paris" in answer.json()["choices"][0]["message"]["content"]
    wait_until_nothing_is(served)


def test_an_agent_may_say_that_a_person_waits(served: Served) -> None:
    with streaming(served, n=2, key="agent", **ENDLESS):
        assert ask(served, key="agent", headers={"x-priority": "interactive"}).status_code == 200
        assert under_way(served) == 2
    wait_until_nothing_is(served)


def test_a_batch_that_made_way_says_all_it_has_to_say(served: Served) -> None:
    long: dict[str, Any] = {"temperature": 0, "ignore_eos": True, "max_tokens": 300}
    alone = ask(served, **long).json()["choices"][0]["message"]["content"]
    with streaming(served, key="agent", **long) as lines:
        assert ask(served).status_code == 200
        said = [json.loads(line[6:])["choices"] for line in lines if line.startswith("data: {")]
    text = "".join(choice["delta"].get("content") or "" for choices in said for choice in choices)
    assert len(text) > len(alone) / 2
    assert alone.endswith(text)


def test_a_batch_does_not_fill_the_queue(served: Served) -> None:
    with streaming(served, key="agent", n=4, **ENDLESS):  # of seven, and no key takes more than it leaves
        assert ask(served, key="agent").status_code == 429
        assert ask(served).status_code == 200
    wait_until_nothing_is(served)


@pytest.mark.parametrize(
    ("route", "error"),
    [
        ("/v1/chat/completions", {"type": "timeout_error", "code": "request_timeout", "param": None}),
        ("/v1/completions", {"type": "timeout_error", "code": "request_timeout", "param": None}),
        ("/v1/responses", {"type": "timeout_error", "code": "request_timeout", "param": None}),
        ("/v1/messages", {"type": "timeout_error"}),
        ("/v1/embeddings", {"type": "timeout_error", "code": "request_timeout", "param": None}),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_has_not_begun_in_time_is_a_504(served: Served, route: str, error: dict[str, Any], stream: bool) -> None:
    with streaming(served, **ENDLESS):  # it holds the slot
        served.worker().suspend()
        try:
            more: dict[str, Any] = {"stream": True} if stream and route != "/v1/embeddings" else {}
            late = ask(served, route, headers={"x-request-timeout": "0.2"}, **more)
        finally:
            served.worker().resume()
    assert late.status_code == 504, late.text
    message = late.json()["error"].pop("message")
    assert "0.2 s" in message
    assert late.json()["error"].items() >= error.items()
    wait_until_nothing_is(served)


@pytest.mark.parametrize(
    ("route", "more", "last"),
    [
        ("/v1/chat/completions", ENDLESS, "data: "),
        ("/v1/completions", ENDLESS | {"max_tokens": 4000}, "data: "),
        (
            "/v1/responses",
            {"text": {"format": {"type": "json_schema", "name": "long", "schema": LONG}}},
            "event: response.failed",
        ),
        (
            "/v1/messages",
            {"output_config": {"format": {"type": "json_schema", "schema": LONG}}, "max_tokens": 4000},
            "event: error",
        ),
    ],
)
def test_a_stream_that_is_not_finished_in_time_ends_with_an_error_and_frees_its_slot(
    served: Served, route: str, more: dict[str, Any], last: str
) -> None:
    body = {"model": "pocket", "stream": True} | BODIES[route] | more
    headers = {"x-api-key": "person", "x-request-timeout": "4"}
    with httpx.stream("POST", served.root + route, json=body, headers=headers, timeout=60) as stream:
        lines = stream.iter_lines()
        assert stream.status_code == 200
        begun = next(line for line in lines if line.startswith("data: "))
        served.worker().suspend()  # nothing more will come
        try:
            rest = [line for line in lines if line]
        finally:
            served.worker().resume()
    assert begun
    assert "timeout" in rest[-1] or "timeout" in rest[-2], rest[-2:]
    assert any(line.startswith(last) for line in rest[-3:]), rest[-3:]
    assert ask(served).status_code == 200
    wait_until_nothing_is(served)


def test_the_config_bounds_what_a_request_may_want(folder: Path) -> None:
    models = {"pocket": {"source": "builtin:pocket", "runtime": "llamacpp", "precision": "int8"}}
    with serve(folder, models, request_timeout="3s") as served:
        late = ask(served, n=16, headers={"x-request-timeout": "1000"}, **ENDLESS)
        assert (late.status_code, late.json()["error"]["code"]) == (504, "request_timeout")
        wait_until_nothing_is(served)
