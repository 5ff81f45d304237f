"""Clients that ask and then read nothing: they hold no place, and not their connection for ever."""

import json
import socket
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.serving import Served, rest, serve

SECONDS = 60  # that anything here may take
ECHO: dict[str, Any] = {
    "echo": {"source": "builtin:echo", "context": 4_000_000, "slots": 1, "keep_alive": "1s"},
}
LETTER = "\1"  # six bytes of JSON
LONG, ENDLESS = 100_000, 1_500_000


def unread(served: Served, letters: int, **fields: Any) -> socket.socket:
    """A client that has asked and looks at nothing."""
    host, port = served.root.removeprefix("http://").split(":")
    body = json.dumps({"model": "echo", "messages": [{"role": "user", "content": LETTER * letters}]} | fields).encode()
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(SECONDS)
    connection.connect((host, int(port)))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
    connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    return connection


def read_until_done(connection: socket.socket) -> bytes:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    received = b""
    while b"[DONE]" not in received[-100:]:
        piece = connection.recv(1 << 16)
        assert piece, received[-100:]
        received += piece
    return received


def ask(served: Served) -> httpx.Response:
    body = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}
    return httpx.post(f"{served.root}/v1/chat/completions", json=body, timeout=SECONDS)


def under_way(served: Served) -> float:
    for line in httpx.get(f"{served.root}/metrics").text.splitlines():
        if line.startswith('enginehouse_requests_under_way{model_name="echo"}'):
            return float(line.split()[-1])
    raise AssertionError


def wait_until_none_is_under_way(served: Served) -> None:
    deadline = time.monotonic() + SECONDS
    while under_way(served):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_answer_that_nobody_reads_holds_its_place_until_the_engine_has_made_it(tmp_path: Path) -> None:
    with serve(tmp_path, ECHO, max_queue=1) as served:
        with unread(served, LONG, stream=True) as first, unread(served, LONG, stream=True) as second:
            for connection in (first, second):
                assert connection.recv(1, socket.MSG_PEEK)  # it is admitted
            wait_until_none_is_under_way(served)
            assert ask(served).status_code == 200
            served.wait_for("unloading 'echo'", SECONDS)
            assert ask(served).status_code == 200  # loaded again
            for connection in (first, second):  # and all of it is there for who reads late
                received = read_until_done(connection)
                assert received.count(b"\\u0001") == LONG


@pytest.mark.parametrize("streamed", [True, False])
def test_a_connection_whose_client_reads_nothing_is_ended(tmp_path: Path, streamed: bool) -> None:
    with serve(tmp_path, ECHO, send_timeout="1s") as served:
        process = psutil.Process(served.process.pid)
        ask(served)
        with unread(served, LONG, stream=streamed) as connection:
            served.wait_for("has taken nothing", SECONDS)
            assert b"[DONE]" not in rest(connection)
        wait_until_none_is_under_way(served)
        served.process.terminate()
        process.wait(SECONDS)
        served.wait_for("Application shutdown complete", SECONDS)
        assert not [line for line in served.log if "Cancel" in line or "Traceback" in line]


def test_what_is_left_of_an_answer_that_nobody_reads_is_not_made(tmp_path: Path) -> None:
    with serve(tmp_path, ECHO, send_timeout="1s") as served:
        with unread(served, ENDLESS, stream=True) as connection:
            served.wait_for("has taken nothing", SECONDS)
            wait_until_none_is_under_way(served)
            rest(connection)
        assert ask(served).status_code == 200
        assert not [line for line in served.log if f"{ENDLESS} tokens" in line]
