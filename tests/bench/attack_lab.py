"""What attacks are made with: servers that leave nothing behind, requests until a moment, bodies; their register."""

import contextlib
import json
import shutil
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.serving import Served, serve

GRACE_SECONDS = 10  # that a request may go on after the attack's time
WATCH_SECONDS = 65  # in which what hangs must have been noticed
PAUSE_SECONDS = 0.1  # between two requests of an attacker
CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
FRANCE = "What is the capital of France?"
ECHO: dict[str, Any] = {"echo": {"source": "builtin:echo"}}
MIB = 1 << 20


@dataclass(frozen=True)
class Attack:
    name: str
    run: Callable[[Any], Any]  # of a Target beside honest streams; of a Lab where `should` says what is right
    should: str = ""
    runtime: str = "llamacpp"
    streams: bool = True  # their gap and speed are judged, not only /health


ATTACKS: dict[str, Attack] = {}


def stalls(name: str, **further: Any) -> Callable[[Callable[["Target"], bool | None]], None]:
    """Registers an attack on everybody's time; False: it got what it should not."""
    return lambda run: ATTACKS.update({name: Attack(name, run, **further)})


def answers(name: str, should: str) -> Callable[[Callable[["Lab"], tuple[str, bool]]], None]:
    """Registers a question; gives what was answered and whether that was right."""
    return lambda run: ATTACKS.update({name: Attack(name, run, should)})


class Lab:
    """Starts servers, each in a folder of its own with a copy of what was built before."""

    def __init__(self, folder: Path, seconds: float, streams: int) -> None:
        self.folder, self.seconds, self.streams = folder, seconds, streams
        self._built = folder / "built"
        self._built.mkdir()
        self._runtimes: set[str] = set()

    def pocket(self, runtime: str = "llamacpp", **options: Any) -> dict[str, Any]:
        """The pocket model's part of a config; what it needs is built at the first call."""
        model = {"source": "builtin:pocket", "runtime": runtime, "precision": "int8", "context": 4096}
        if runtime not in self._runtimes:
            self._runtimes.add(runtime)
            with serve(self._built, {"pocket": model}) as served:
                ask(served, chat(), seconds=300).raise_for_status()
        return model | options

    @contextmanager
    def serve(self, models: dict[str, Any], files: dict[str, Path] | None = None, **settings: Any) -> Iterator[Served]:
        """A server; `files` are linked to beside its config, by these names."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        if self._runtimes:
            shutil.copytree(self._built / "cache", folder / "cache", symlinks=True)
        for name, file in (files or {}).items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).symlink_to(file)
        with serve(folder, models, **settings) as served, ended(served):
            yield served


@contextmanager
def ended(served: Served) -> Iterator[None]:
    """Ends it at once and with its children: one that was attacked may end late or never by itself."""
    try:
        yield
    finally:
        children = served.children() if served.process.poll() is None else []
        served.process.kill()
        served.process.wait()
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(children, timeout=10)


class Target:
    """A server that is attacked until a moment, and what it answered."""

    def __init__(self, served: Served, seconds: float = 0) -> None:
        self.served, self.until = served, time.monotonic() + seconds
        self.got: Counter[str] = Counter()
        self._client = httpx.Client(base_url=served.root, trust_env=False)

    def send(self, path: str, body: Any = None, seconds: float | None = None) -> str:
        """The status of a POST, of a GET where there is no body."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        seconds = seconds or max(0, self.until - time.monotonic()) + GRACE_SECONDS
        headers = {"content-type": "application/json"}
        try:
            if body is None:
                reply = self._client.get(path, timeout=seconds)
            else:
                reply = self._client.post(path, content=content, headers=headers, timeout=seconds)
            got = str(reply.status_code)
        except httpx.TimeoutException:
            got = "no answer"
        except httpx.TransportError:
            got = "closed"
        self.got[got if body is not None else f"GET: {got}"] += 1
        return got

    def repeat(
        self, body: Any, path: str = CHAT, clients: int = 1, pause: float = PAUSE_SECONDS, seconds: float | None = None
    ) -> None:
        """So many clients, each of which sends it again and again; `seconds`: after which they leave."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()

        def client(_: int) -> None:
            while time.monotonic() < self.until:
                self.send(path, content, seconds)
                time.sleep(pause)

        with ThreadPoolExecutor(clients) as threads:
            list(threads.map(client, range(clients)))

    def flood(self, head: bytes, mebibytes: int, piece: bytes = b"a") -> None:
        """A request's beginning and then a piece over and over, again and again."""
        pieces = piece * (MIB // len(piece))
        while time.monotonic() < self.until:
            got = "closed"
            with socket.create_connection(address(self.served), GRACE_SECONDS) as connection:
                try:
                    connection.sendall(head)
                    for _ in range(mebibytes):
                        connection.sendall(pieces)
                    connection.sendall(b" HTTP/1.1\r\n\r\n")
                    got = connection.recv(12)[9:].decode() or got
                except TimeoutError:
                    got = "no answer"
                except OSError:
                    pass
            self.got[got] += 1
            time.sleep(PAUSE_SECONDS)

    def closed(self, sent: Sequence[bytes], seconds: float) -> int:
        """Opens a connection for each, which then waits: how many the server has closed after that time."""
        with contextlib.ExitStack() as held:
            connections = [held.enter_context(socket.create_connection(address(self.served))) for _ in sent]
            for connection, beginning in zip(connections, sent, strict=True):
                connection.sendall(beginning)
                connection.setblocking(False)
            deadline, left = time.monotonic() + seconds, connections
            while left and time.monotonic() < deadline:
                time.sleep(PAUSE_SECONDS)
                left = [connection for connection in left if not ended_by_server(connection)]
        self.got["closed"] += len(connections) - len(left)
        self.got["open"] += len(left)
        return len(connections) - len(left)

    def memory(self) -> int:
        """Bytes resident in the server itself."""
        return int(psutil.Process(self.served.process.pid).memory_info().rss)


def ended_by_server(connection: socket.socket) -> bool:
    try:
        return not connection.recv(1 << 16)
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def address(served: Served) -> tuple[str, int]:
    host, port = served.root.removeprefix("http://").split(":")
    return host, int(port)


def ask(served: Served, body: Any, path: str = CHAT, seconds: float = 60, **headers: str) -> httpx.Response:
    return httpx.post(served.root + path, json=body, headers=headers, timeout=seconds, trust_env=False)


def get(served: Served, path: str, **headers: str) -> httpx.Response:
    return httpx.get(served.root + path, headers=headers, timeout=60, trust_env=False)


def chat(content: Any = FRANCE, model: str = "pocket", **fields: Any) -> dict[str, Any]:
    messages = content if isinstance(content, list) else [{"role": "user", "content": content}]
    return {"model": model, "messages": messages, "temperature": 0, "max_tokens": 50} | fields


def held_to(schema: dict[str, Any]) -> dict[str, Any]:
    """A chat request whose answer has this schema."""
    return chat(response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}})


def tool(name: str = "f", **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name} | fields}


def record(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


def union(count: int, name: str = "event") -> dict[str, Any]:
    """A schema of one of so many tagged objects."""
    return {"anyOf": [record(kind={"const": f"{name}_{n}"}, value={"type": "integer"}) for n in range(count)]}
