"""A model served elsewhere: by another Enginehouse, and by servers that answer what no server should."""

import asyncio
import json
import signal
import subprocess
import threading
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anthropic
import httpx
import msgspec
import openai
import pytest
import uvicorn
from litestar import Litestar, Request, Response, get, post
from litestar.response import Stream

from enginehouse.config.schema import Model
from enginehouse.config.schema import Upstream as Config
from enginehouse.runtimes.contract import Chat, Grammar, Ids, Job, JsonSchema, Regex, Sampling, Text
from enginehouse.runtimes.upstream.request import FAMILIES, KNOWN, OPENAI, body_of
from enginehouse.server.api.chat.protocol import ChatRequest
from tests.serving import Served, free_port, serve

HELLO = [{"role": "user", "content": "hello there"}]
KEY = "sk-very-secret-0123456789"
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


def said(text: str, **more: Any) -> bytes:
    return line({"model": "m", "choices": [{"index": 0, "delta": {"content": text}, **more}]})


def line(fields: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


END = line({"model": "m", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
USAGE = line({"model": "m", "choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}})
DONE = b"data: [DONE]\n\n"
GOOD = said("hel") + said("lo") + END + USAGE + DONE


class Odd:
    """A server of OpenAI's API, on a port of this machine, that answers with what a test says."""

    def __init__(self) -> None:
        self.status, self.body, self.content_type = 200, GOOD, "text/event-stream"
        self.headers: dict[str, str] = {}
        self.hang_after: int | None = None  # pieces of the body that come, before nothing more does
        self.asked: list[dict[str, Any]] = []
        self.sent_headers: list[dict[str, str]] = []
        self.left = threading.Event()  # a client went away in the middle
        self.go = threading.Event()  # one that hangs goes on
        self.at_once = self.most_at_once = 0  # requests
        self.owner = "someone"
        self.url = ""

    def app(self) -> Litestar:
        @get("/v1/models")
        async def models() -> dict[str, Any]:
            return {"object": "list", "data": [{"id": "m", "object": "model", "owned_by": self.owner}]}

        @post("/v1/chat/completions", status_code=200)
        async def chat(request: Request[Any, Any, Any]) -> Response[Any]:
            self.asked.append(json.loads(await request.body()))
            self.sent_headers.append(dict(request.headers))
            if self.hang_after is not None:
                return Stream(self.slow(), media_type=self.content_type)
            return Response(self.body, status_code=self.status, media_type=self.content_type, headers=self.headers)

        return Litestar([models, chat], logging_config=None)

    async def slow(self) -> AsyncIterator[bytes]:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        pieces, hang_after = self.body.split(b"\n\n"), self.hang_after
        try:
            for piece in pieces[:hang_after]:
                yield piece + b"\n\n"
            await asyncio.to_thread(self.go.wait, 60)
            for piece in pieces[hang_after:]:
                yield piece + b"\n\n"
        finally:
            self.at_once -= 1
            self.left.set()


@contextmanager
def odd(**tls: str) -> Iterator[Odd]:
    one, port = Odd(), free_port()
    server = uvicorn.Server(
        uvicorn.Config(one.app(), port=port, log_level="error", timeout_graceful_shutdown=1, **tls)  # type: ignore[arg-type]
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    one.url = f"{'https' if tls else 'http'}://127.0.0.1:{port}/v1"
    try:
        yield one
    finally:
        server.should_exit = True
        thread.join(timeout=10)


@pytest.fixture(scope="module")
def pair() -> Iterator[list[Odd]]:
    with odd() as first, odd() as second:
        yield [first, second]


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Odd]:
    """With a certificate that nobody signed."""
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = str(folder / "key.pem"), str(folder / "cert.pem")
    made = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=127.0.0.1")
    subprocess.run([*made, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    with odd(ssl_keyfile=key, ssl_certfile=certificate) as server:
        yield server


@pytest.fixture(scope="module")
def front(pair: list[Odd], secret: Odd, house: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Models of upstreams: one odd server, two of them, none that is there, and the models of a house."""
    impatient = {"first_token_timeout": "1s", "token_timeout": "1s", "connect_timeout": "1s"}
    odds = {"model": "m", "api_key_env": "BIG_KEY", **impatient}
    there = [f"{house.root}/v1"]
    gone = f"http://127.0.0.1:{free_port()}/v1"
    models = {
        "one": {"runtime": "upstream", "upstream": {"base_urls": [pair[0].url], **odds}},
        "patient": {"runtime": "upstream", "upstream": {"base_urls": [pair[0].url], "model": "m"}},
        "brittle": {"runtime": "upstream", "upstream": {"base_urls": [pair[0].url], "model": "m"}},
        "two": {"runtime": "upstream", "upstream": {"base_urls": [one.url for one in pair], **odds}},
        "half": {"runtime": "upstream", "upstream": {"base_urls": [gone, pair[1].url], **odds}},
        "gone": {"runtime": "upstream", "upstream": {"base_urls": [gone], **odds}},
        "tls": {"runtime": "upstream", "upstream": {"base_urls": [secret.url], **odds}},
        "pocket": {"runtime": "upstream", "upstream": {"base_urls": there, "model": "pocket"}},
        "agent": {"runtime": "upstream", "upstream": {"base_urls": there, "model": "agent"}},
        "plain": {
            "runtime": "upstream",
            "upstream": {"base_urls": there, "model": "pocket", "features": ["max_tokens"]},
        },
        "raw": {
            "runtime": "upstream",
            "upstream": {"base_urls": [pair[0].url], **odds, "features": [*OPENAI, "top_k"], "parser": "hermes"},
        },
        "chatty": {
            "runtime": "upstream",
            "upstream": {"base_urls": [pair[0].url], **odds, "features": ["temperature", "top_p"], "parser": "generic"},
        },
        "home": {
            "source": "builtin:echo",
            "overflow": "busy",
            "local_only": True,
            "upstream": {"base_urls": [pair[0].url], **odds},
        },
        "failing": {
            "source": "./no-such-model",
            "overflow": "failing",
            "upstream": {"base_urls": [pair[0].url], **odds},
        },
        "cold": {"source": "builtin:echo", "overflow": "loading", "upstream": {"base_urls": [pair[0].url], **odds}},
    }
    with serve(tmp_path_factory.mktemp("front"), models, {"BIG_KEY": KEY}) as served:
        yield served
        assert KEY not in "".join(served.log)


@pytest.fixture
def server(pair: list[Odd]) -> Iterator[Odd]:
    """The first of the two, as it was."""
    for one in pair:
        url = one.url
        one.__init__()  # type: ignore[misc]
        one.url = url
    yield pair[0]
    for one in pair:
        one.go.set()
        one.hang_after, one.body, one.status, one.content_type = None, GOOD, 200, "text/event-stream"


def ask(front: Served, model: str = "one", **fields: Any) -> httpx.Response:
    """A plain request, once the breaker lets it through."""
    body = {"model": model, "messages": HELLO} | fields
    while True:
        reply = httpx.post(f"{front.root}/v1/chat/completions", json=body, timeout=60)
        if "no server of the upstream can be asked now" not in reply.text or model == "gone":
            return reply
        time.sleep(0.2)


# --- one server ---


def test_an_answer_comes_with_usage_and_who_gave_it(front: Served, server: Odd) -> None:
    reply = ask(front)
    assert reply.status_code == 200
    body = reply.json()
    assert body["choices"][0]["message"]["content"] == "hello"
    assert body["model"] == "one"
    assert (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]) == (7, 2)
    assert reply.headers["x-enginehouse-runtime"] == "upstream"
    assert "as 'm'" in reply.headers["x-enginehouse-reason"]
    assert server.asked[0]["model"] == "m"
    assert server.asked[0]["temperature"] == 1.0
    assert server.sent_headers[0]["authorization"] == f"Bearer {KEY}"
    sent, ours = server.sent_headers[0]["x-request-id"], reply.headers["x-request-id"].partition("_")[2]
    assert uuid.UUID(sent).hex.startswith(ours)  # llama_cpp.server refuses what is no UUID


# --- thoughts and calls in its text ---

THOUGHT, CALL = "<think>\nto Oslo\n</think>\n\n", '{"name": "weather", "arguments": {"city": "Oslo"}}'


def in_pieces(text: str, size: int = 3) -> bytes:
    return b"".join(said(text[at : at + size]) for at in range(0, len(text), size)) + END + USAGE + DONE


def test_thoughts_and_calls_are_taken_out_of_its_text(front: Served, server: Odd) -> None:
    server.body = in_pieces(f"{THOUGHT}I look.\n<tool_call>\n{CALL}\n</tool_call>")
    choice = ask(front, "raw", tools=[TOOL]).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    message = choice["message"]
    assert (message["reasoning_content"].strip(), message["content"].strip()) == ("to Oslo", "I look.")
    call = message["tool_calls"][0]["function"]
    assert (call["name"], json.loads(call["arguments"])) == ("weather", {"city": "Oslo"})
    assert server.asked[0]["tools"] and "tool_choice" not in server.asked[0]
    plain = ask(front, "one").json()["choices"][0]["message"]
    assert plain["content"].startswith("<think>")


def test_the_other_dialects_see_them_too_while_they_stream(front: Served, server: Odd) -> None:
    server.body = in_pieces(f"{THOUGHT}<tool_call>\n{CALL}\n</tool_call>")
    client = anthropic.Anthropic(base_url=front.root, api_key="none", max_retries=0)
    tool: Any = {"name": "weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
    with client.messages.stream(
        model="raw", max_tokens=50, tools=[tool], messages=[{"role": "user", "content": "hi"}]
    ) as stream:
        message = stream.get_final_message()
    assert message.stop_reason == "tool_use"
    uses = [block for block in message.content if block.type == "tool_use"]
    assert [(use.name, use.input) for use in uses] == [("weather", {"city": "Oslo"})]


def test_an_upstream_that_knows_no_tools_is_told_of_them_in_words(front: Served, server: Odd) -> None:
    server.body = in_pieces(CALL)
    earlier = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": FUNCTION}]},
        {"role": "tool", "tool_call_id": "1", "content": "rain"},
    ]
    choice = ask(front, "chatty", tools=[TOOL], messages=earlier).json()["choices"][0]
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "weather"
    asked = server.asked[0]
    assert "tools" not in asked
    assert [message["role"] for message in asked["messages"]] == ["system", "user", "assistant", "user"]
    assert '"name": "weather"' in asked["messages"][0]["content"]
    assert asked["messages"][3]["content"] == "weather returned: rain"
    server.body = GOOD
    assert ask(front, "chatty", tools=[TOOL]).json()["choices"][0]["message"]["content"] == "hello"


FUNCTION = {"name": "weather", "arguments": "{}"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ],
)
def test_what_reading_its_text_cannot_enforce_is_refused(front: Served, fields: dict[str, Any], param: str) -> None:
    reply = ask(front, "raw", tools=[TOOL], **fields)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


def test_a_field_that_it_is_not_known_to_honour_is_refused_by_name(front: Served, server: Odd) -> None:
    reply = ask(front, top_k=5)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "top_k")
    assert "upstream.features" in reply.json()["error"]["message"]
    assert not server.asked


HTML = b"<html>welcome to nginx</html>"
ODDITIES: dict[str, tuple[int, str, bytes, dict[str, str], int, str]] = {
    "HTML": (200, "text/html", HTML, {}, 502, "answered with 'text/html'"),
    "half a stream": (200, "text/event-stream", said("hel"), {}, 502, "ended in the middle"),
    "an empty stream": (200, "text/event-stream", b"", {}, 502, "ended in the middle"),
    "no JSON": (200, "text/event-stream", b"data: {not json}\n\n", {}, 502, "stream is broken"),
    "other types": (200, "text/event-stream", b'data: {"choices": 3}\n\n', {}, 502, "stream is broken"),
    "a huge line": (200, "text/event-stream", b"data: " + b"x" * (2 << 20), {}, 502, "a line of more than 1 MiB"),
    "another model": (200, "text/event-stream", GOOD.replace(b'"m"', b'"x"'), {}, 502, "answers as 'x'"),
    "an error in the stream": (200, "text/event-stream", line({"error": {"message": "oops"}}), {}, 502, "failed: oops"),
    "a key that is wrong": (401, "application/json", json.dumps({"error": {"message": KEY}}).encode(), {}, 502, "key"),
    "no such model": (404, "application/json", b'{"error": {"message": "no m"}}', {}, 502, "(404): no m"),
    "a redirect": (302, "text/html", b"", {"location": "/login"}, 502, "status 302"),
    "an error with the key": (500, "application/json", json.dumps({"error": KEY}).encode(), {}, 502, "***"),
    "a crash": (500, "text/html", HTML, {}, 502, "status 500"),
    "no room": (503, "application/json", b"{}", {"retry-after": "9"}, 503, "(503)"),
    "too many": (429, "application/json", b'{"error": {"message": "slow down"}}', {"retry-after": "17"}, 429, "slow"),
    "a refusal": (400, "application/json", b'{"error": {"message": "no", "param": "seed"}}', {}, 400, "(400): no"),
}


@pytest.mark.parametrize("name", ODDITIES)
def test_what_is_no_answer_is_one_sentence_with_the_right_status(front: Served, server: Odd, name: str) -> None:
    assert ask(front).status_code == 200  # else it would be left alone after three of these
    server.status, server.content_type, server.body, server.headers, status, sentence = ODDITIES[name]
    reply = ask(front)
    error = reply.json()["error"]
    assert (reply.status_code, sentence in error["message"]) == (status, True), error
    assert reply.headers.get("retry-after") == server.headers.get("retry-after")
    assert KEY not in reply.text and "127.0.0.1" not in reply.text
    assert "\n" not in error["message"] and len(error["message"]) < 600


def test_a_stream_without_done_is_whole_once_it_says_why_it_ended(front: Served, server: Odd) -> None:
    server.body = said("hel") + said("lo") + END
    assert ask(front).json()["choices"][0]["message"]["content"] == "hello"


@pytest.mark.parametrize(("pieces", "sentence"), [(0, "no answer within 1s"), (1, "nothing more within 1s")])
def test_one_that_goes_silent_is_a_504(front: Served, server: Odd, pieces: int, sentence: str) -> None:
    server.hang_after = pieces
    reply = ask(front)
    assert (reply.status_code, reply.json()["error"]["code"]) == (504, "upstream_timeout")
    assert sentence in reply.json()["error"]["message"]


def test_a_stream_that_breaks_ends_with_an_error_event(front: Served, server: Odd) -> None:
    server.body = said("hel")
    messages: Any = HELLO
    with pytest.raises(openai.APIError, match="ended in the middle"):
        list(front.client.chat.completions.create(model="brittle", messages=messages, stream=True))


def test_what_fails_together_is_one_failure(server: Odd, tmp_path: Path) -> None:
    """As where one of several servers behind an address dies."""
    models = {"m": {"runtime": "upstream", "upstream": {"base_urls": [server.url], "model": "m"}}}
    with serve(tmp_path, models) as served, ThreadPoolExecutor(6) as threads:
        server.body, server.hang_after = said("hel"), 1
        replies = [threads.submit(ask, served, "m") for _ in range(6)]
        while server.at_once < len(replies):
            time.sleep(0.02)
        server.go.set()
        assert [reply.result().status_code for reply in replies] == [502] * 6
        server.body, server.hang_after = GOOD, None
        body = {"model": "m", "messages": HELLO}
        assert httpx.post(f"{served.root}/v1/chat/completions", json=body, timeout=60).status_code == 200


def test_a_client_that_leaves_closes_the_connection_to_the_upstream(front: Served, server: Odd) -> None:
    server.hang_after = 1
    with httpx.stream(
        "POST", f"{front.root}/v1/chat/completions", json={"model": "patient", "messages": HELLO, "stream": True}
    ) as reply:
        next(reply.iter_lines())
        assert not server.left.is_set()
    assert server.left.wait(30)  # the upstream's own time would be over in a minute


def streamed(front: Served, model: str, headers: dict[str, str]) -> str:
    body = {"model": model, "messages": HELLO, "stream": True}
    with httpx.stream("POST", f"{front.root}/v1/chat/completions", json=body, headers=headers, timeout=60) as reply:
        return reply.read().decode()


def test_a_request_ends_with_its_own_deadline_and_so_does_what_the_upstream_does(front: Served, server: Odd) -> None:
    server.hang_after = 1
    body = {"model": "patient", "messages": HELLO}
    soon = {"x-request-timeout": "3"}
    reply = httpx.post(f"{front.root}/v1/chat/completions", json=body, headers=soon, timeout=60)
    assert (reply.status_code, reply.json()["error"]["code"]) == (504, "request_timeout")
    assert server.left.wait(20)
    server.left.clear()
    ended = streamed(front, "patient", soon)
    assert '"hel"' in ended and "request_timeout" in ended and "[DONE]" in ended
    assert server.left.wait(20)
    server.hang_after = None
    assert ask(front, "patient").status_code == 200


def test_no_more_requests_are_at_an_upstream_than_it_has_connections(server: Odd, tmp_path: Path) -> None:
    server.hang_after = 1
    models = {"m": {"runtime": "upstream", "upstream": {"base_urls": [server.url], "model": "m", "connections": 2}}}
    with serve(tmp_path, models) as served, ThreadPoolExecutor(6) as threads:
        replies = [threads.submit(ask, served, "m") for _ in range(6)]
        while f'enginehouse_requests_under_way{{model_name="m"}} {len(replies)}.0' not in metrics(served):
            time.sleep(0.02)
        while server.at_once < 2:
            time.sleep(0.02)
        server.go.set()
        assert [reply.result().status_code for reply in replies] == [200] * 6
    assert server.most_at_once == 2


def metrics(served: Served) -> str:
    return httpx.get(f"{served.root}/metrics").text


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_server_that_stops_lets_an_upstream_come_to_its_end_in_time(
    server: Odd, tmp_path: Path, goes_on: bool
) -> None:
    server.hang_after = 1
    models = {"m": {"runtime": "upstream", "upstream": {"base_urls": [server.url], "model": "m"}}}
    with serve(tmp_path, models, drain_timeout="forever" if goes_on else "0s") as served:
        with ThreadPoolExecutor(1) as thread:
            reply = thread.submit(streamed, served, "m", {})
            while server.at_once < 1:
                time.sleep(0.02)
            served.process.send_signal(signal.SIGTERM)
            served.wait_for("shutting down", 60)
            if goes_on:
                server.go.set()
            ended = reply.result(60)
        assert ("the server is shutting down" in ended, '"lo"' in ended) == (not goes_on, goes_on)
        served.process.wait(60)
        assert not [one for one in served.log if "Traceback" in one]
    assert server.left.wait(20)


def test_one_that_is_not_there_is_a_503_that_says_when_to_ask_again(front: Served) -> None:
    reply = ask(front, "gone")
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "upstream_unavailable")
    assert int(reply.headers["retry-after"]) >= 1


def test_a_certificate_that_nobody_signed_is_said_to_be_one(front: Served) -> None:
    reply = ask(front, "tls")
    assert (reply.status_code, "certificate" in reply.json()["error"]["message"]) == (502, True)


def test_explain_and_the_list_of_models_name_it_and_not_its_key(front: Served) -> None:
    explained = httpx.get(f"{front.root}/v1/models/two/explain").json()
    assert (explained["chosen"], len(explained["upstream"]["replicas"])) == ("upstream/remote/m", 2)
    listed = httpx.get(f"{front.root}/v1/models").text
    assert "upstream:m" in listed
    assert KEY not in listed + json.dumps(explained)


# --- several ---


def test_when_a_replica_fails_before_its_first_token_another_answers(
    front: Served, server: Odd, pair: list[Odd]
) -> None:
    for status in (500, 503, 429):
        server.status, server.content_type, server.body = status, "application/json", b"{}"
        for n in range(3):
            reply = ask(front, "two", messages=[{"role": "user", "content": f"{status} {n}"}])
            assert reply.json()["choices"][0]["message"]["content"] == "hello"
    assert len(pair[1].asked) == 9


def test_one_that_is_gone_is_not_waited_for(front: Served, server: Odd, pair: list[Odd]) -> None:
    for _ in range(4):
        assert ask(front, "half").status_code == 200
    assert len(pair[1].asked) == 4


def test_conversations_are_spread_and_each_stays_where_it_is(front: Served, server: Odd, pair: list[Odd]) -> None:
    where = Counter[int]()
    assert ask(front, "two").status_code == 200
    for number in range(8):
        begin = [{"role": "user", "content": f"conversation {number}"}]
        for one in pair:
            one.asked.clear()
        ask(front, "two", messages=begin)
        first = 0 if pair[0].asked else 1
        where[first] += 1
        ask(front, "two", messages=[*begin, {"role": "assistant", "content": "hello"}, *HELLO])
        assert len(pair[first].asked) == 2
    assert min(where[0], where[1]) >= 2


# --- beside engines here ---


def test_what_is_local_only_never_leaves(front: Served, server: Odd) -> None:
    for _ in range(3):
        assert ask(front, "home").headers["x-enginehouse-runtime"] == "echo"
    assert not server.asked
    assert httpx.get(f"{front.root}/v1/models/home/explain").json()["upstream"] is None


def test_when_the_engines_here_fail_the_upstream_answers(front: Served, server: Odd) -> None:
    assert ask(front, "failing").headers["x-enginehouse-runtime"] == "upstream"


def test_while_a_model_is_loaded_here_the_upstream_answers(front: Served, server: Odd) -> None:
    who = [ask(front, "cold").headers["x-enginehouse-runtime"]]
    while who[-1] != "echo":
        who.append(ask(front, "cold").headers["x-enginehouse-runtime"])
    assert who[0] == "upstream"


def test_when_every_slot_is_taken_the_upstream_answers(server: Odd, tmp_path: Path) -> None:
    upstream = {"base_urls": [server.url], "model": "m"}
    options = {"echo": {"prefill_rate": 100}}
    models = {
        "e": {
            "source": "builtin:echo",
            "slots": 1,
            "context": 8192,
            "overflow": "busy",
            "upstream": upstream,
            "options": options,
        }
    }
    with serve(tmp_path, models) as served:
        while ask(served, "e").headers["x-enginehouse-runtime"] != "echo":
            pass
        held = {"model": "e", "messages": [{"role": "user", "content": "x " * 2000}], "stream": True}
        with httpx.stream("POST", f"{served.root}/v1/chat/completions", json=held) as reply:
            assert reply.headers["x-enginehouse-runtime"] == "echo"
            assert ask(served, "e").headers["x-enginehouse-runtime"] == "upstream"


# --- another Enginehouse, through every dialect ---


def test_another_house_answers_as_it_does_itself(front: Served, house: Served) -> None:
    question = [{"role": "user", "content": "What is the capital of France?"}]
    options: Any = {"messages": question, "temperature": 0, "max_tokens": 50, "logprobs": True, "top_logprobs": 2}
    here, there = (one.client.chat.completions.create(model="pocket", **options).choices[0] for one in (front, house))
    assert here.message.content == there.message.content == "The capital of France is Paris."
    assert here.logprobs and there.logprobs and here.logprobs.content and there.logprobs.content
    for ours, theirs in zip(here.logprobs.content, there.logprobs.content, strict=True):
        assert (ours.token, ours.bytes, len(ours.top_logprobs)) == (theirs.token, theirs.bytes, 2)
        assert ours.logprob == pytest.approx(theirs.logprob, abs=0.05)
    chunks = front.client.chat.completions.create(model="pocket", stream=True, **options)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == there.message.content


def test_its_tool_calls_come_through(front: Served, house: Served) -> None:
    for stream in (False, True):
        calls = []
        for one in (front, house):
            messages = [{"role": "user", "content": '<tool_call>{"name": "weather", "arguments": {}}</tool_call>'}]
            body = {
                "model": "agent",
                "messages": messages,
                "tools": [TOOL],
                "tool_choice": "required",
                "stream": stream,
            }
            reply = httpx.post(f"{one.root}/v1/chat/completions", json=body, timeout=60)
            assert reply.status_code == 200, reply.text
            calls.append((reply.text.count('"weather"'), '"finish_reason":"tool_calls"' in reply.text))
        assert calls == [(1, True), (1, True)]


def test_the_other_dialects_work_over_one_that_has_chat_alone(front: Served, server: Odd) -> None:
    assert front.client.responses.create(model="one", input="hello").output_text == "hello"
    claude = anthropic.Anthropic(base_url=front.root, api_key="none", max_retries=0)
    reply = claude.messages.create(model="one", max_tokens=9, messages=HELLO)  # type: ignore[arg-type]
    assert reply.content[0].text == "hello"  # type: ignore[union-attr]
    assert reply.usage.input_tokens == 7
    ollama = httpx.post(
        f"{front.root}/api/chat", json={"model": "one", "messages": HELLO, "stream": False, "options": {"top_k": 0}}
    )
    assert ollama.json()["message"]["content"] == "hello"
    assert httpx.get(f"{front.root}/api/tags").status_code == 200


def test_completions_and_embeddings_go_to_one_that_has_them(front: Served, server: Odd) -> None:
    reply = front.client.completions.create(model="pocket", prompt="The capital of", max_tokens=4, temperature=0)
    assert reply.choices[0].text
    assert len(front.client.embeddings.create(model="pocket", input=["a", "b"]).data) == 2
    refused = httpx.post(f"{front.root}/v1/completions", json={"model": "one", "prompt": "a"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prompt")
    refused = httpx.post(f"{front.root}/tokenize", json={"model": "one", "prompt": "a"})
    assert (refused.status_code, "tokens are not known" in refused.text) == (400, True)


def test_features_that_are_declared_are_all_that_is_sent(front: Served) -> None:
    reply = ask(front, "plain", temperature=0.5)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "temperature")
    assert ask(front, "plain", max_tokens=3).status_code == 200


# --- what is sent ---


def test_every_feature_of_a_family_is_known() -> None:
    assert not {one for family in (OPENAI, *FAMILIES.values()) for one in family} - set(KNOWN)


def test_whatever_is_sent_is_a_request_that_this_house_takes_itself() -> None:
    full = Sampling(
        max_tokens=3, min_tokens=1, temperature=0.5, top_p=0.5, top_k=3, min_p=0.1, seed=1, stop=("a",), logprobs=2,
        frequency_penalty=0.5, presence_penalty=0.5, repetition_penalty=1.1, logit_bias={3: 1.0}, stop_token_ids=(4,),
        prediction="hello", ignore_eos=True,
    )  # fmt: skip
    chat = Chat(HELLO, [TOOL], True, "weather", False, {"a": 1}, "low")
    for sampling in (full, Sampling(), *(Sampling(constraint=c) for c in (JsonSchema("{}"), Regex("a"), Grammar("b")))):
        path, body = body_of(Job("1", "x", chat, sampling), "m", KNOWN)
        msgspec.json.decode(body, type=ChatRequest)
        assert path == "/chat/completions"
    for prompt in (Text("a"), Ids([1])):
        assert body_of(Job("1", "x", prompt, full), "m", KNOWN)[0] == "/completions"


def test_a_config_says_what_is_wrong_with_it() -> None:
    urls = {"base_urls": ["http://a/v1"], "model": "m"}
    for wrong, sentence in (
        ({"runtime": "upstream"}, "needs 'upstream"),
        ({"runtime": "upstream", "upstream": urls, "source": "x"}, "leave one of them out"),
        ({"runtime": "upstream", "upstream": urls, "local_only": True}, "'local_only' forbids"),
        ({"source": "x", "upstream": urls}, "'upstream' is never asked"),
        ({"source": "x", "overflow": "busy"}, "'overflow' needs 'upstream"),
    ):
        with pytest.raises(msgspec.ValidationError, match=sentence):
            msgspec.convert(wrong, Model)
    for url in ("ftp://a", "http://user:pass@a/v1", "http://a/v1?key=1"):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert({"base_urls": [url], "model": "m"}, Config)
