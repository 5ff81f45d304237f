"""A real server in its own process, for tests: start it, read its log, end it, see what is left."""

import json
import os
import queue
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import psutil
import uvicorn
from litestar import Litestar

COMMAND = (sys.executable, "-m", "enginehouse.server.cli.main")
START_SECONDS = 60
LINE_SECONDS = 120
REFERENCES = tempfile.TemporaryDirectory(prefix="references-")


class Served:
    """One running `enginehouse serve`."""

    def __init__(self, process: subprocess.Popen[str], port: int, cache: Path) -> None:
        self.process, self.cache = process, cache
        self.root = f"http://127.0.0.1:{port}"
        self.log: list[str] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self.log.append(line)
            self._lines.put(line)
        self._lines.put(None)

    def wait_for(self, text: str, seconds: float = LINE_SECONDS) -> str:
        """The next log line with `text` in it."""
        while (line := self._lines.get(timeout=seconds)) is not None:
            if text in line:
                return line
        raise AssertionError(f"the server ended without saying '{text}':\n{''.join(self.log)}")

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.root}/v1", api_key="none", max_retries=0, timeout=120)

    @property
    def async_client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.root}/v1", api_key="none", max_retries=0, timeout=120)

    def children(self) -> list[psutil.Process]:
        found: list[psutil.Process] = psutil.Process(self.process.pid).children(recursive=True)
        return found

    def worker(self) -> psutil.Process:
        return next(child for child in self.children() if "enginehouse.runtimes.worker" in child.cmdline())


@contextmanager
def serve(
    folder: Path,
    models: dict[str, Any],
    environment: dict[str, str] | None = None,
    routing: dict[str, Any] | None = None,
    optimize: dict[str, Any] | None = None,
    command: Sequence[str] = COMMAND,
    memory_budget: str = "80%",
    **server: Any,
) -> Iterator[Served]:
    """A server with this config, its cache in `folder` unless the environment says otherwise. Nothing outlives it.

    Nothing is measured or built behind a test's back unless it says so.
    """
    share_references(folder / "cache")
    port = free_port()
    config = folder / f"config-{port}.yaml"
    sections = {"server": {"port": port, **server}, "routing": routing or {"measure": "on-demand"}}
    sections["optimize"] = {"first_load": "wait"} | (optimize or {})
    further = {"cache_dir": str(folder / "cache"), "memory_budget": memory_budget}
    config.write_text(json.dumps({**sections, **further, "models": models}))
    process = subprocess.Popen(
        [*command, "serve", "--config", str(config)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    served = Served(process, port, folder / "cache")
    try:
        served.wait_for("Application startup complete", START_SECONDS)
        yield served
    finally:
        left = served.children() if process.poll() is None else []
        process.terminate()
        process.wait(timeout=30)
        _, alive = psutil.wait_procs(left, timeout=10)
        assert not alive, f"processes outlived the server: {alive}"


@contextmanager
def hosted(app: Litestar) -> Iterator[str]:
    """Another server, in a thread of this process; its address."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=10)


def share_references(cache: Path) -> None:
    """What the quality gate knows of a source is the same for every cache, and takes seconds to find out."""
    if cache.is_file():
        return
    cache.mkdir(exist_ok=True)
    if not (cache / "references").exists():
        (cache / "references").symlink_to(REFERENCES.name)


def rest(connection: socket.socket) -> bytes:
    """All that comes until the server closes, in whatever way."""
    received = b""
    try:
        while piece := connection.recv(1 << 16):
            received += piece
    except ConnectionError:
        pass
    return received


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
