"""/schema/openapi.json says what is so, and no body, however odd, breaks the server."""

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from enginehouse.server.urgency import PRIORITY, TIMEOUT
from tests.serving import Served, serve

BODIES = int(os.environ.get("ENGINEHOUSE_BODIES", "200"))
CASES = 20  # of each route
LEFT_SECONDS = 10.0
BODIED = (
    "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/rerank", "/tokenize", "/v1/tokenize",
    "/v2/rerank", "/rerank", "/v1/score", "/score",
    "/detokenize", "/v1/detokenize", "/v1/responses", "/v1/responses/input_tokens", "/v1/messages",
    "/v1/messages/count_tokens", "/api/chat", "/api/generate", "/api/embed", "/api/embeddings", "/api/pull",
    "/api/show", "/v1/responses/compact", "/v1/conversations", "/v1/conversations/{id}",
    "/v1/conversations/{id}/items", "/v1/chat/completions/{id}",
)  # fmt: skip
COMMANDS = ("/v1/responses/{id}/cancel",)  # posted without a body
# What echo answers, and fields whose every value it takes.
SENSIBLE: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "echo", "messages": [{"role": "user", "content": "one two three"}]},
    "/v1/completions": {"model": "echo", "prompt": ["one two three", [65, 66]], "echo": True},
    "/tokenize": {"model": "echo", "prompt": "one two three"},
    "/v1/tokenize": {"model": "echo", "messages": [{"role": "user", "content": "one two three"}]},
    "/detokenize": {"model": "echo", "tokens": [65, 66]},
    "/v1/responses": {"model": "echo", "input": "one two three"},
    "/v1/responses/input_tokens": {"model": "echo", "input": "one two three"},
    "/v1/messages": {"model": "echo", "max_tokens": 5, "messages": [{"role": "user", "content": "one two three"}]},
    "/v1/messages/count_tokens": {"model": "echo", "messages": [{"role": "user", "content": "one two three"}]},
    "/v1/detokenize": {"model": "echo", "tokens": [65, 66]},
    "/api/chat": {"model": "echo", "messages": [{"role": "user", "content": "one two three"}]},
    "/api/generate": {"model": "echo", "prompt": "one two three", "stream": False},
    "/v1/responses/compact": {"model": "echo", "input": "one two three"},
}
KEPT = {"/v1/conversations": {"items": [{"role": "user", "content": "one"}]}}  # what no model answers
DIALECTS = ("/v1/responses", "/v1/messages", "/api/chat", "/api/generate")
TAKEN = {route: {"stream"} for route in DIALECTS}
PLAIN = {"stream", "n", "temperature", "top_p", "seed", "stop", "max_completion_tokens", "user", "metadata"}
ROUTES = (
    *BODIED, *COMMANDS, "/v1/conversations/{id}/items/{item}",
    "/v1/chat/completions/{id}/messages",
    "/v1/models", "/v1/models/{name}", "/v1/responses/{id}", "/v1/responses/{id}/input_items", "/metrics",
    "/health", "/ready", "/version", "/api/tags", "/api/ps", "/api/version",
)  # fmt: skip
# Echo makes no embeddings, and there is nothing of an invented name.
NEVER_ANSWERED = (
    "/v1/embeddings",
    "/v1/rerank",
    "/api/embed",
    "/api/embeddings",
    "/v2/rerank",
    "/rerank",
    "/v1/score",
    "/score",
    "/v1/chat/completions/{id}",
    "/v1/chat/completions/{id}/messages",
    "/v1/models/{name}",
    "/v1/responses/{id}",
    "/v1/responses/{id}/input_items",
    *COMMANDS,
    "/v1/conversations/{id}",
    "/v1/conversations/{id}/items",
    "/v1/conversations/{id}/items/{item}",
)
TRUE = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def alone(folder: Path) -> Iterator[Served]:
    """A server in which nothing else runs, so that its counters are ours."""
    with serve(folder, {"echo": {"source": "builtin:echo"}}) as served:
        yield served


@pytest.fixture(scope="module")
def client(alone: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=alone.root, headers={"content-type": "application/json"}, timeout=20) as client:
        yield client


@pytest.mark.parametrize("route", SENSIBLE)
def test_every_answer_names_who_gave_it(client: httpx.Client, route: str) -> None:
    answer = client.post(route, json=SENSIBLE[route])
    assert (answer.status_code, answer.headers.get("x-enginehouse-runtime")) == (200, "echo"), answer.text
    described = client.get("/schema/openapi.json").json()["paths"][route]["post"]["responses"]["200"]
    assert described["headers"].keys() <= {key.lower() for key in answer.headers}


@pytest.fixture(scope="module")
def api(alone: Served) -> Any:
    return schemathesis.openapi.from_url(f"{alone.root}/schema/openapi.json")


@pytest.mark.parametrize("route", ROUTES)
def test_every_route_answers_as_its_schema_says(api: Any, route: str) -> None:
    operation = api[route]["POST" if route in BODIED + COMMANDS else "GET"]

    answered = set()

    @given(operation.as_strategy() | operation.as_strategy(generation_mode=GenerationMode.NEGATIVE), st.booleans())
    @settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    def ask(case: Any, sensible: bool) -> None:
        if isinstance(case.body, dict):
            case.body |= {"model": "echo"} if "model" in case.body else {}
            if sensible:
                for header in (PRIORITY, TIMEOUT):
                    (case.headers or {}).pop(header, None)
                case.body = (SENSIBLE | KEPT).get(route, {"model": "echo"}) | {
                    key: case.body[key] for key in TAKEN.get(route, PLAIN) & case.body.keys()
                }
        answered.add(case.call_and_validate(checks=TRUE, timeout=30).status_code)

    ask()
    assert 200 in answered or route in NEVER_ANSWERED


def test_every_route_is_described_with_body_answer_and_failures(alone: Served) -> None:
    document = httpx.get(f"{alone.root}/schema/openapi.json").json()
    assert set(document["paths"]) == set(ROUTES)
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert "200" in operation["responses"], path
            assert "500" in operation["responses"], path
            assert ("requestBody" in operation) == (method == "post" and path in BODIED), path
    described = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert set(re.findall(r'"\$ref":\s*"([^"]+)"', json.dumps(document))) <= described
    assert "security" not in document


def test_a_server_with_keys_says_so(folder: Path) -> None:
    with serve(folder, {"echo": {"source": "builtin:echo"}}, api_keys=["k"]) as served:
        document = httpx.get(f"{served.root}/schema/openapi.json", headers={"x-api-key": "k"}).json()
        assert document["security"] == [{"key": []}]
        assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"


# --- bodies that nobody would send ---

WHOLE: dict[str, Any] = {
    "model": "echo",
    "messages": [{"role": "system", "content": "a"}, {"role": "user", "content": [{"type": "text", "text": "b"}]}],
    "stream": False,
    "stream_options": {"include_usage": True},
    "max_tokens": 5,
    "temperature": 0.5,
    "top_p": 0.9,
    "seed": 1,
    "n": 2,
    "stop": ["x"],
    "logit_bias": {"1": 1},
    "logprobs": True,
    "top_logprobs": 1,
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "string"}}},
    "metadata": {"a": "b"},
}
NECESSARY = {"model", "messages"}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A valid body of some fields, in which some values were replaced, added or taken away."""
    optional = sorted(WHOLE.keys() - NECESSARY)
    kept = NECESSARY | set(draw(st.lists(st.sampled_from(optional), unique=True, max_size=4)))
    body = json.loads(json.dumps({key: value for key, value in WHOLE.items() if key in kept}))
    for _ in range(draw(st.integers(0, 3))):
        at: Any = body
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(at[key], dict | list) and draw(st.booleans()):
                at = at[key]
                continue
            match draw(st.sampled_from(["replace", "remove", "add"])):
                case "replace":
                    at[key] = draw(json_values)
                case "remove":
                    del at[key]
                case "add" if isinstance(at, dict):
                    at[draw(st.text(max_size=8))] = draw(json_values)
                case _:
                    at.append(draw(json_values))
            break
    return json.dumps(body).encode()


@given(mutated())
@settings(
    max_examples=BODIES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
def test_no_body_breaks_or_hangs_the_server(client: httpx.Client, body: bytes) -> None:
    reply = client.post("/v1/chat/completions", content=body)
    assert reply.status_code in (200, 400, 404), (body, reply.text)
    if reply.status_code == 400 and reply.json()["error"]["param"] is None:
        assert "whole number" in reply.text or "not JSON" in reply.text, (body, reply.text)


def test_nothing_of_all_that_is_left_in_the_pool(alone: Served) -> None:
    until = time.monotonic() + LEFT_SECONDS  # the server learns a moment later that a client has left
    while httpx.get(f"{alone.root}/v1/models/echo").json()["status"]["requests"]:
        assert time.monotonic() < until, "requests under way that nobody waits for"
    metrics = httpx.get(f"{alone.root}/metrics").text
    assert 'enginehouse_requests_under_way{model="echo"} 0.0' in metrics
    assert 'enginehouse_deaths_total{model="echo"} 0.0' in metrics
