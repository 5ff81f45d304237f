"""The end of a server: answers under way come to their end or say why not, and nothing is left."""

import contextlib
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


def child(served: Served, module: str) -> psutil.Process:
    """The process that runs it, as soon as there is one."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        for one in served.children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if module in one.cmdline():
                    return one
        time.sleep(0.01)
    raise AssertionError(f"no process runs {module}")


def ended(served: Served) -> None:
    served.process.wait(SECONDS)
    served.wait_for("Application shutdown complete", SECONDS)
    assert not [line for line in served.log if "Traceback" in line or "Cancel" in line], "".join(served.log)


def test_whatever_is_under_way_is_told_so_in_its_own_form(tmp_path: Path) -> None:
    with serve(tmp_path, ECHO, drain_timeout="forever") as served:
        children = served.children()
        asking = begun(served)
        served.process.send_signal(signal.SIGTERM)
        served.wait_for("shutting down", SECONDS)
        ready = httpx.get(f"{served.root}/ready", timeout=SECONDS)
        assert (ready.status_code, ready.json()["error"]["code"]) == (503, "not_ready")
        health = httpx.get(f"{served.root}/health", timeout=SECONDS)
        assert (health.status_code, health.json()["error"]["code"]) == (503, "draining")
        for path in ROUTES:
            refused = httpx.post(served.root + path, json={"model": "echo"} | ROUTES[path]("hi"), timeout=SECONDS)
            assert (refused.status_code, "shutting down" in refused.text) == (503, True)
        served.process.send_signal(signal.SIGTERM)
        ended(served)
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


def test_the_time_to_drain_is_over_by_itself(tmp_path: Path) -> None:
    with serve(tmp_path, ECHO, drain_timeout="0s") as served:
        asking = Asking(served, "/v1/chat/completions", streamed=True)
        assert asking.began.wait(SECONDS)
        served.process.send_signal(signal.SIGTERM)
        ended(served)
        asking.end()
        assert b"the server is shutting down" in asking.received


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
    with serve(tmp_path, models, drain_timeout="1s") as served, ThreadPoolExecutor(2) as threads:
        url = f"{served.root}/v1/chat/completions"
        body = {"model": "hung", "messages": [{"role": "user", "content": "hi"}]}
        plain = threads.submit(httpx.post, url, json=body, timeout=SECONDS)
        stream = threads.submit(httpx.post, url, json=body | {"stream": True}, timeout=SECONDS)
        while 'under_way{model_name="hung"} 2.0' not in httpx.get(f"{served.root}/metrics").text:
            time.sleep(0.02)
        served.process.send_signal(signal.SIGTERM)
        assert plain.result().status_code == 503
        assert plain.result().json()["error"]["code"] == "shutting_down"
        assert b'"code":"shutting_down"' in stream.result().content
        (hung / "config.json").write_text("{}")  # so that the thread that reads it ends
        ended(served)


def test_a_client_that_reads_nothing_does_not_hold_up_the_end(tmp_path: Path) -> None:
    with serve(tmp_path, ECHO, drain_timeout="1s") as served, socket.socket() as connection:
        host, port = served.root.removeprefix("http://").split(":")
        body = json.dumps({"model": "echo", "stream": True} | ROUTES["/v1/chat/completions"](LONG)).encode()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((host, int(port)))
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
        connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        connection.recv(1)
        served.process.send_signal(signal.SIGTERM)
        ended(served)


@pytest.mark.parametrize("again", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once_what_a_first_one_waits_for(tmp_path: Path, again: signal.Signals) -> None:
    with serve(tmp_path, ECHO, drain_timeout="forever") as served:
        children = served.children()
        asking = Asking(served, "/v1/chat/completions", streamed=True)
        assert asking.began.wait(SECONDS)
        served.process.send_signal(signal.SIGTERM)
        served.wait_for("answers under way have forever to end", SECONDS)
        served.process.send_signal(again)
        ended(served)
        asking.end()
        assert b"the server is shutting down" in asking.received
        assert not psutil.wait_procs(children, timeout=10)[1]


def test_a_build_that_is_under_way_is_ended_and_leaves_nothing(tmp_path: Path) -> None:
    models = {"pocket": {"source": "builtin:pocket", "runtime": "llamacpp", "precision": "Q4_K_M"}}
    body = {"model": "pocket", "messages": [{"role": "user", "content": "hi"}]}
    with serve(tmp_path, models, drain_timeout="0s") as served, ThreadPoolExecutor(1) as thread:
        reply = thread.submit(httpx.post, f"{served.root}/v1/chat/completions", json=body, timeout=SECONDS)
        served.wait_for("building gguf", SECONDS)
        builds = [child(served, "enginehouse.optimize.build")]
        served.process.send_signal(signal.SIGTERM)
        assert (reply.result().status_code, reply.result().json()["error"]["code"]) == (503, "shutting_down")
        ended(served)
        assert not psutil.wait_procs(builds, timeout=10)[1]
    assert not [path.name for path in (tmp_path / "cache" / "artifacts").glob("*")]


def test_a_load_that_is_under_way_is_ended(tmp_path: Path) -> None:
    models = {"slow": {"source": "builtin:echo"}}
    body = {"model": "slow", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    with serve(tmp_path, models, drain_timeout="0s") as served, ThreadPoolExecutor(1) as thread:
        reply = thread.submit(httpx.post, f"{served.root}/v1/chat/completions", json=body, timeout=SECONDS)
        workers = [child(served, "enginehouse.runtimes.worker")]
        served.process.send_signal(signal.SIGTERM)
        assert "shutting_down" in reply.result().text
        ended(served)
        assert not psutil.wait_procs(workers, timeout=10)[1]


def test_systemd_is_told_when_it_is_ready_and_when_it_stops(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(SECONDS)
        with serve(tmp_path, ECHO, {"NOTIFY_SOCKET": str(tmp_path / "notify")}) as served:
            assert systemd.recv(100) == b"READY=1"
            served.process.send_signal(signal.SIGTERM)
            assert systemd.recv(100) == b"STOPPING=1"
            ended(served)


def test_under_nohup_sighup_changes_nothing(tmp_path: Path) -> None:
    with serve(tmp_path, ECHO, command=("nohup", *COMMAND)) as served:
        served.process.send_signal(signal.SIGHUP)
        body = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}
        url = f"{served.root}/v1/chat/completions"
        assert httpx.post(url, json=body, timeout=SECONDS).status_code == 200
        with pytest.raises(subprocess.TimeoutExpired):
            served.process.wait(1)
