"""The end of a server: answers under way come to their end or say why not, and nothing is left."""

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.serving import COMMAND, Served, serve

SECONDS = 60
LONG = "a" * 400_000  # the engine takes longer for it than the server leaves it
ECHO: dict[str, Any] = {"echo": {"source": "builtin:echo", "context": 4_000_000, "slots": 16}}
ROUTES: dict[str, Callable[[str], dict[str, Any]]] = {
    "/v1/chat/completions": lambda text: {"messages": [{"role": "user", "content": text}]},
    "/v1/completions": lambda text: {"prompt": text, "max_tokens": len(text)},
    "/v1/responses": lambda text: {"input": text, "store": False},
    "/v1/messages": lambda text: {"messages": [{"role": "user", "content": text}], "max_tokens": len(text)},
}
ENDS_WITH = {
    "/v1/chat/completions": b"data: [DONE]",
    "/v1/completions": b"data: [DONE]",
    "/v1/responses": b"event: response.failed",
    "/v1/messages": b"event: error",
}


class Asking:
    """One request, under way in a thread of its own."""

    def __init__(self, served: Served, path: str, streamed: bool) -> None:
        self.path, self.streamed = path, streamed
        self.began = threading.Event()
        self.status, self.received, self.broken = 0, b"", ""
        self._body = {"model": "echo", "stream": streamed} | ROUTES[path](LONG)
        self._thread = threading.Thread(target=self._ask, args=[served.root + path])
        self._thread.start()

    def _ask(self, url: str) -> None:
        try:
            with httpx.stream("POST", url, json=self._body, timeout=SECONDS) as reply:
                self.status = reply.status_code
                for piece in reply.iter_bytes():
                    self.received += piece
                    self.began.set()
        except httpx.HTTPError as error:
            self.broken = str(error)

    def end(self) -> None:
        self._thread.join(SECONDS)


def under_way(served: Served) -> float:
    lines = httpx.get(f"{served.root}/metrics").text.splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith("enginehouse_requests_under_way"))


def begun(served: Served) -> list[Asking]:
    """A stream and a plain request on each route."""
    asking = [Asking(served, path, streamed) for path in ROUTES for streamed in (True, False)]
    for one in asking:
        if one.streamed:
            assert one.began.wait(SECONDS)
    while under_way(served) < len(asking):
        time.sleep(0.02)
    return asking


def ended(served: Served) -> None:
    served.process.wait(SECONDS)
    served.wait_for("Application shutdown complete", SECONDS)
    assert not [line for line in served.log if "Traceback" in line or "Cancel" in line], "".join(served.log)


def test_whatever_is_under_way_is_told_so_in_its_own_form(tmp_path: Path) -> None:
    with serve(tmp_path, ECHO) as served:
        children = served.children()
        asking = begun(served)
        began = time.monotonic()
        served.process.send_signal(signal.SIGTERM)
        served.wait_for("shutting down", SECONDS)
        ready = httpx.get(f"{served.root}/ready", timeout=SECONDS)
        assert (ready.status_code, ready.json()["error"]["code"]) == (503, "not_ready")
        assert httpx.get(f"{served.root}/health", timeout=SECONDS).status_code == 200
        for path in ROUTES:
            refused = httpx.post(served.root + path, json={"model": "echo"} | ROUTES[path]("hi"), timeout=SECONDS)
            assert (refused.status_code, "shutting down" in refused.text) == (503, True)
        ended(served)
        assert time.monotonic() - began < 20  # 5 on a quiet machine
        for one in asking:
            one.end()
            assert not one.broken, (one.path, one.streamed, one.broken)
            assert b"the server is shutting down" in one.received, (one.path, one.received[-1500:])
            if one.streamed:
                assert one.status == 200
                assert ENDS_WITH[one.path] in one.received
            else:
                assert one.status == 503
                if one.path != "/v1/messages":
                    assert json.loads(one.received)["error"]["code"] == "shutting_down"
        assert not psutil.wait_procs(children, timeout=10)[1]


def test_an_answer_that_ends_in_time_is_not_cut_short(tmp_path: Path) -> None:
    with serve(tmp_path, ECHO) as served:
        content = LONG[:4000]
        body = {"model": "echo", "messages": [{"role": "user", "content": content}]}
        httpx.post(f"{served.root}/v1/chat/completions", json=body, timeout=SECONDS)
        with ThreadPoolExecutor(1) as thread:
            reply = thread.submit(httpx.post, f"{served.root}/v1/chat/completions", json=body, timeout=SECONDS)
            while not under_way(served) and not reply.done():
                pass
            served.process.send_signal(signal.SIGTERM)
            assert reply.result().json()["choices"][0]["message"]["content"] == content
        ended(served)


def test_a_request_that_waits_for_its_model_is_told_so(tmp_path: Path) -> None:
    """Its source is on a disk that does not answer."""
    hung = tmp_path / "hung"
    hung.mkdir()
    os.mkfifo(hung / "config.json")
    (hung / "model.safetensors").write_bytes(b"")
    models = ECHO | {"hung": {"source": str(hung), "runtime": "llamacpp"}}
    with serve(tmp_path, models) as served, ThreadPoolExecutor(2) as threads:
        url = f"{served.root}/v1/chat/completions"
        body = {"model": "hung", "messages": [{"role": "user", "content": "hi"}]}
        plain = threads.submit(httpx.post, url, json=body, timeout=SECONDS)
        stream = threads.submit(httpx.post, url, json=body | {"stream": True}, timeout=SECONDS)
        while 'under_way{model="hung"} 2.0' not in httpx.get(f"{served.root}/metrics").text:
            time.sleep(0.02)
        served.process.send_signal(signal.SIGTERM)
        assert plain.result().status_code == 503
        assert plain.result().json()["error"]["code"] == "shutting_down"
        assert b'"code":"shutting_down"' in stream.result().content
        (hung / "config.json").write_text("{}")  # so that the thread that reads it ends
        ended(served)


def test_a_client_that_reads_nothing_does_not_hold_up_the_end(tmp_path: Path) -> None:
    with serve(tmp_path, ECHO) as served, socket.socket() as connection:
        host, port = served.root.removeprefix("http://").split(":")
        body = json.dumps({"model": "echo", "stream": True} | ROUTES["/v1/chat/completions"](LONG)).encode()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((host, int(port)))
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
        connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        connection.recv(1)
        served.process.send_signal(signal.SIGTERM)
        ended(served)


@pytest.mark.parametrize(("command", "ends"), [(COMMAND, True), (("nohup", *COMMAND), False)], ids=["plain", "nohup"])
def test_a_terminal_that_closes_ends_the_server_in_order_unless_it_runs_under_nohup(
    tmp_path: Path, command: tuple[str, ...], ends: bool
) -> None:
    with serve(tmp_path, ECHO, command=command) as served:
        body = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}
        url = f"{served.root}/v1/chat/completions"
        assert httpx.post(url, json=body, timeout=SECONDS).status_code == 200
        served.process.send_signal(signal.SIGHUP)
        if ends:
            ended(served)
        else:
            assert httpx.post(url, json=body, timeout=SECONDS).status_code == 200
            with pytest.raises(subprocess.TimeoutExpired):
                served.process.wait(1)
