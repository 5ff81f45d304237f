"""What a client may ask of a connection before and beside any request: its size, its time, and how many it holds."""

import json
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from enginehouse.server import limits
from tests.serving import Served, rest, serve

ECHO: dict[str, Any] = {"echo": {"source": "builtin:echo"}}
GET = b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
SECONDS = 30  # a client's patience in a test
MIB = 1 << 20


def server_with(statements: str) -> tuple[str, ...]:
    """The command that serves, where these were run before."""
    return (sys.executable, "-c", f"{statements}; from enginehouse.server.cli.main import main; main()")


HASTY = server_with(
    "from enginehouse.server import connection as c; c.HEAD_SECONDS = c.BODY_PAUSE_SECONDS = 1; c.BODY_SECONDS = 3"
)
POOR = server_with("import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (100, 100))")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(tmp_path_factory.mktemp("connections"), ECHO) as served:
        yield served


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(tmp_path_factory.mktemp("hasty"), ECHO, command=HASTY) as served:
        yield served


def connect(served: Served, sent: bytes = b"") -> socket.socket:
    host, port = served.root.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), SECONDS)
    connection.sendall(sent)
    return connection


def until(words: bytes, connection: socket.socket) -> bytes:
    received = b""
    while words not in received:
        piece = connection.recv(1 << 16)
        assert piece, received
        received += piece
    return received


def status(answer: bytes) -> int:
    return int(answer[9:12] or 0)


def error(answer: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    return found


# --- sizes ---


@pytest.mark.parametrize(
    ("beginning", "piece", "expected"),
    [
        (GET + b"x: ", b"a" * MIB, 431),
        (GET, b"x-header: 0123456789\r\n" * 40_000, 431),
        (GET, b"a" * MIB, 431),
        (b"GET /v1/models?", b"a" * MIB, 414),
        (POST + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nx: ", b"a" * MIB, 431),
        (POST + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n", b"x: 0123456789\r\n" * 40_000, 431),
        (b"", b"\r\n" * MIB, 431),
    ],
    ids=["a header", "many headers", "a name", "a url", "a trailer", "many trailers", "blank lines"],
)
def test_a_head_without_end_ends_its_connection_and_takes_no_memory(
    served: Served, beginning: bytes, piece: bytes, expected: int
) -> None:
    process = psutil.Process(served.process.pid)
    before = process.memory_info().rss
    with connect(served, beginning) as connection:
        with pytest.raises(ConnectionError):
            for _ in range(64):
                connection.sendall(piece)
        assert status(rest(connection)) in (0, expected)
    assert process.memory_info().rss - before < 16 * MIB
    assert httpx.get(f"{served.root}/v1/models").status_code == 200


def test_what_is_a_little_more_than_the_limit_is_refused_by_name(served: Served) -> None:
    half = limits.HEAD_BYTES // 2
    for head, expected, code in (
        (GET + b"x: " + b"a" * limits.HEAD_BYTES, 431, "headers_too_large"),
        (GET + b"x: " + b"a" * half + b"\r\ny: " + b"a" * half, 431, "headers_too_large"),
        (GET + b"x: 1\r\n" * limits.HEADERS, 431, "headers_too_large"),
        (b"GET /?" + b"a" * limits.HEAD_BYTES + b" HTTP/1.1\r\nhost: a", 414, "url_too_long"),
        (b"NONSENSE", 400, None),
    ):
        with connect(served, head + b"\r\n\r\n") as connection:
            answer = rest(connection)
        assert status(answer) == expected
        assert error(answer)["code"] == code


def test_heads_up_to_the_limit_are_read(served: Served) -> None:
    for headers in ({"x": "a" * 60_000}, {f"x-{n}": "a" for n in range(200)}):
        assert httpx.get(f"{served.root}/v1/models", headers=headers).status_code == 200
    assert httpx.get(f"{served.root}/v1/models?{'a' * 60_000}").status_code == 200


def test_requests_that_come_at_once_are_answered_in_their_order(served: Served) -> None:
    paths = [b"/health", b"/nothing", b"/v1/models", b"/ready"]
    sent = b"".join(b"GET " + path + b" HTTP/1.1\r\nhost: localhost\r\n\r\n" for path in paths)
    with connect(served, sent.removesuffix(b"\r\n") + b"connection: close\r\n\r\n") as connection:
        answers = rest(connection)
    places = [answers.index(words) for words in (b'"ok"', b"/nothing", b'"echo"', b'"ready"')]
    assert places == sorted(places)
    with connect(served) as connection:
        for _ in range(3):  # and one after the other
            connection.sendall(GET + b"\r\n")
            until(b'"echo"', connection)


def test_more_requests_at_once_than_anyone_sends_end_the_connection(served: Served) -> None:
    with connect(served, GET + b"\r\n") as connection:
        connection.sendall((GET + b"\r\n") * 1000)
        assert rest(connection).count(b"HTTP/1.1") < 1000


def test_a_refusal_is_never_taken_for_the_answer_to_an_earlier_request(hasty: Served) -> None:
    body = json.dumps({"model": "echo", "messages": [{"role": "user", "content": "a" * 4000}]}).encode()
    with connect(hasty, POST + b"content-length: %d\r\n\r\n" % len(body) + body + b"NONSENSE\r\n\r\n") as connection:
        assert status(rest(connection)) in (0, 200)
    with connect(hasty, POST + b"content-length: 99999999\r\n\r\n{") as connection:
        answers = rest(connection)
    assert (status(answers), answers.count(b"HTTP/1.1")) == (413, 1)


# --- times ---


@pytest.mark.parametrize("sent", [b"", b"GET / HT", GET, b"\r\n"])
def test_a_connection_that_sends_no_whole_head_is_closed(hasty: Served, sent: bytes) -> None:
    with connect(hasty, sent) as connection:
        assert rest(connection) == b""


def test_a_byte_now_and_then_puts_nothing_off(hasty: Served) -> None:
    began = time.monotonic()
    with connect(hasty, GET) as connection, pytest.raises(ConnectionError):
        connection.settimeout(0.2)
        while time.monotonic() - began < SECONDS:
            connection.sendall(b"a")
            try:
                if not connection.recv(1):
                    raise ConnectionResetError
            except TimeoutError:
                pass


@pytest.mark.parametrize("interval", [0.2, SECONDS])
def test_a_body_that_does_not_come_to_its_end_is_a_408(hasty: Served, interval: float) -> None:
    with connect(hasty, POST + b"content-length: 1000\r\n\r\n{") as connection:
        connection.settimeout(interval)
        answer = b""
        for _ in range(int(SECONDS / interval)):
            try:
                answer = rest(connection)
                break
            except TimeoutError:
                connection.sendall(b" ")
    assert status(answer) == 408
    assert "body" in error(answer)["message"]


def test_times_do_not_run_while_an_answer_does(hasty: Served) -> None:
    """Nor for the head of a next request: it may have begun."""
    body = json.dumps({"model": "echo", "messages": [{"role": "user", "content": "a" * 4000}], "stream": True}).encode()
    with connect(hasty, POST + b"content-length: %d\r\n\r\n" % len(body) + body + GET) as connection:
        until(b"[DONE]", connection)
        connection.sendall(b"\r\n")
        until(b'"object":"list"', connection)


# --- numbers ---


def test_connections_that_idle_shut_nobody_out(tmp_path: Path) -> None:
    with serve(tmp_path, ECHO, command=POOR) as served, ExitStack() as held:
        for _ in range(150):
            held.enter_context(connect(served))
        body = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}
        reply = httpx.post(f"{served.root}/v1/chat/completions", json=body, timeout=SECONDS)
        assert reply.json()["choices"][0]["message"]["content"] == "hi"


def test_one_more_than_can_be_busy_is_answered_503(tmp_path: Path) -> None:
    with serve(tmp_path, ECHO, command=POOR) as served, ExitStack() as held:
        for _ in range(50):
            held.enter_context(connect(served, POST + b"content-length: 10\r\n\r\n{"))
        reply = httpx.get(f"{served.root}/v1/models", timeout=SECONDS)
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "too_many_connections")
