"""The log: lines for programs to read, the id on each that belongs to a request, and no word of what was asked."""

import json
import logging
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from litestar import Litestar, Request, Response, get, post

from enginehouse.server.logs import Discreet, JsonLines, TextLines
from enginehouse.server.request_id import CURRENT
from tests.serving import Served, hosted, serve

SECRET = "xylophone"
ECHO: dict[str, Any] = {"source": "builtin:echo", "context": 2000}
CHAT, SAID = "/v1/chat/completions", [{"role": "user", "content": SECRET}]


@get("/v1/models")
async def listed() -> dict[str, Any]:
    return {"object": "list", "data": [{"id": "m", "object": "model", "owned_by": "someone"}]}


@post("/v1/chat/completions", status_code=200)
async def quotes(request: Request[Any, Any, Any]) -> Response[Any]:
    """An upstream that says in its error what it was asked, in the way of its client's choice."""
    asked = await request.json()
    return Response({"error": {"message": f"cannot read {asked['messages']}"}}, status_code=asked["seed"])


@pytest.fixture(scope="module", params=["json", "text"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with hosted(Litestar([listed, quotes], logging_config=None)) as url:
        upstream = {"base_urls": [f"{url}/v1"], "model": "m"}
        models = {
            "echo": ECHO,
            "dies": ECHO | {"options": {"echo": {"fails_on": SECRET}}},
            "remote": {"runtime": "upstream", "upstream": upstream},
            "quoting": {"runtime": "upstream", "upstream": upstream},
            "overflowing": ECHO | {"overflow": "loading", "upstream": upstream},
        }
        with serve(tmp_path_factory.mktemp("logs"), models, log_format=request.param) as served:
            yield served


def ask(served: Served, body: dict[str, Any], id: str = "any") -> httpx.Response:
    return httpx.post(served.root + CHAT, json=body, headers={"x-request-id": id}, timeout=60)


def everything(served: Served) -> None:
    """The secret in every place that a client has, in requests that fail in every way."""
    asked = {"model": "echo", "messages": SAID, "max_tokens": 20}
    bodies: list[tuple[str, dict[str, Any]]] = [
        (CHAT, asked),
        (CHAT, asked | {"stream": True}),
        (CHAT, asked | {"model": "dies"}),
        (CHAT, asked | {"model": "dies", "stream": True}),
        (CHAT, asked | {"model": SECRET}),
        (CHAT, asked | {SECRET: SECRET}),
        (CHAT, asked | {"temperature": SECRET}),
        (CHAT, asked | {"messages": SECRET}),
        (CHAT, asked | {"messages": [{"role": SECRET, "content": SECRET}]}),
        (CHAT, asked | {"messages": [{"role": "user", "content": SECRET * 500}]}),
        (CHAT, asked | {"messages": [{"role": "user", "content": SECRET}] * 30_000}),
        (CHAT, asked | {"tools": [{"type": "function", "function": {"name": SECRET, "parameters": {"type": SECRET}}}]}),
        (CHAT, asked | {"tools": [{"type": SECRET}]}),
        (CHAT, asked | {"response_format": {"type": "json_schema", "json_schema": {"name": SECRET, "schema": {}}}}),
        ("/v1/completions", {"model": "echo", "prompt": SECRET}),
        ("/v1/responses", {"model": "echo", "input": SECRET, "previous_response_id": SECRET}),
        ("/v1/responses", {"model": "echo", "input": SECRET, "background": True}),
        ("/v1/responses", {"model": "echo", "input": SECRET, "tools": [{"type": "web_search"}, {"type": SECRET}]}),
        ("/v1/messages", {"model": "echo", "messages": SAID, "max_tokens": 5}),
        ("/v1/embeddings", {"model": "echo", "input": SECRET}),
        ("/tokenize", {"model": "echo", "prompt": SECRET}),
        ("/api/chat", {"model": "echo", "messages": SAID}),
        ("/api/chat", {"model": "echo", "messages": SECRET}),
        (f"/{SECRET}", asked),
        *(
            (CHAT, asked | {"model": model, "seed": status})
            for model in ("remote", "overflowing")
            for status in FAILURES
        ),
    ]
    with httpx.Client(base_url=served.root, timeout=60) as client:
        for path, body in bodies:
            client.post(path, json=body, headers={"x-mine": SECRET})
        client.post(CHAT, content=f'{{"model": {SECRET}'.encode())
        client.get(f"/v1/models/{SECRET}", params={SECRET: SECRET})
        with client.stream("POST", CHAT, json=asked | {"stream": True}), suppress(httpx.HTTPError):
            pass  # left in the middle


FAILURES = (400, 404, 418, 422, 429, 500, 503)


def test_no_line_has_a_word_of_what_was_asked(served: Served) -> None:
    everything(served)
    done = httpx.post(
        served.root + CHAT, json={"model": "echo", "messages": SAID}, headers={"x-request-id": "the-end"}, timeout=60
    )
    assert done.status_code == 200
    served.wait_for("the-end")
    assert any("it failed, 500" in line for line in served.log)
    assert [line for line in served.log if SECRET in line] == []


def test_an_upstreams_words_are_its_clients_alone(served: Served) -> None:
    body = {"model": "quoting", "messages": SAID, "seed": 500}
    replies = [ask(served, body) for _ in range(5)]
    assert SECRET in replies[0].json()["error"]["message"]
    hello = [{"role": "user", "content": "hello"}]
    other = ask(served, body | {"messages": hello}).json()["error"]["message"]
    assert SECRET not in other
    assert SECRET not in httpx.get(f"{served.root}/v1/models/quoting/explain").text


def test_what_belongs_to_a_request_bears_its_id_also_where_its_worker_dies(served: Served) -> None:
    before = len(served.log)
    reply = ask(served, {"model": "dies", "messages": SAID}, "mine-1")
    assert (reply.status_code, reply.headers["x-request-id"]) == (500, "mine-1")
    served.wait_for("it failed, 500")
    lines = [line for line in served.log[before:] if "mine-1" in line]
    assert any("it fails while it answers mine-1" in line for line in lines)  # the worker's own
    assert sum("running the request again" in line for line in lines) == 2
    assert any("it failed, 500: WorkerDied" in line for line in lines)


def test_each_line_of_json_is_an_object_with_the_id_where_it_has_one(tmp_path: Path) -> None:
    with serve(tmp_path, {"echo": ECHO}, log_format="json") as served:
        body = {"model": "echo", "messages": SAID}
        for id in ("a-1", "a-2"):
            assert (
                httpx.post(served.root + CHAT, json=body, headers={"x-request-id": id}, timeout=60).status_code == 200
            )
        served.wait_for("a-2")
        lines = [json.loads(line) for line in served.log]
        served.process.terminate()
        served.wait_for("Finished server process")
        assert "request_id" not in json.loads(served.log[-1])  # nor one of the worker that the request started
    assert {"time", "level", "logger", "message"} <= set.intersection(*(set(line) for line in lines))
    done = [line for line in lines if "tokens, stop" in line["message"]]
    assert [line["request_id"] for line in done] == ["a-1", "a-2"]
    assert lines[0].get("request_id") is None


def test_prompts_are_logged_where_that_is_asked_for(tmp_path: Path) -> None:
    with serve(tmp_path, {"echo": ECHO}, log_prompts=True) as served:
        assert ask(served, {"model": "echo", "messages": SAID}).status_code == 200
        assert SECRET in served.wait_for("asks: ")


@pytest.mark.parametrize("lines", [TextLines, JsonLines])
def test_an_unexpected_error_is_shown_by_its_place_and_not_by_its_words(
    lines: type[Discreet],
) -> None:
    def failing() -> None:
        try:
            raise KeyError(SECRET)
        except KeyError as error:
            raise ExceptionGroup(SECRET, [ValueError(SECRET), OSError(28, "No space left on device")]) from error

    shown = {}
    try:
        failing()
    except ExceptionGroup as error:
        for log_prompts in (False, True):
            info = (type(error), error, error.__traceback__)
            record = logging.LogRecord("x", logging.ERROR, "", 0, "unexpected error", (), info)
            shown[log_prompts] = lines(log_prompts).format(record)
    assert SECRET not in shown[False].replace("raise KeyError(SECRET)", "")
    for word in ("KeyError", "ValueError", "No space left on device", "in failing"):
        assert word in shown[False]
    assert SECRET in shown[True]


def test_a_thread_has_the_id_of_the_request_it_works_for() -> None:
    from asyncio import run

    from enginehouse.runtimes.pool.threads import Threads

    async def ask() -> tuple[str, str]:
        CURRENT.set("mine")
        threads = Threads()
        found = await threads.run("a", CURRENT.get), threading.current_thread().name
        threads.end()
        return found

    assert run(ask())[0] == "mine"
