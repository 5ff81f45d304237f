"""The server that commands talk to: `$ENGINEHOUSE_URL`, else the one of the config; over HTTP, as any client does."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec

from enginehouse.config.schema import Config
from enginehouse.runtimes.errors import Unavailable
from enginehouse.server.cli.health import reachable

NO_KEY = "none"  # clients want one, also where the server does not
LOG = "serve.log"  # in the cache, of a server that a command started
STARTED_SECONDS = 60


class Address(msgspec.Struct, frozen=True):
    root: str  # without /v1
    key: str = NO_KEY


class Failed(Exception):
    """The server's own words for what it cannot do."""


class Part(msgspec.Struct, frozen=True):
    """Of an answer. `note`: what the server says meanwhile."""

    text: str = ""
    thought: str = ""
    note: str = ""
    call: str = ""  # a tool's name and arguments
    usage: dict[str, Any] = {}  # at the end


def address(config: Config) -> Address:
    keys = config.server.all_keys
    key = os.environ.get("ENGINEHOUSE_API_KEY") or (keys[0].key if keys else NO_KEY)
    if url := os.environ.get("ENGINEHOUSE_URL"):
        return Address(url.rstrip("/").removesuffix("/v1"), key)
    host = reachable(config.server.host)
    return Address(f"http://{f'[{host}]' if ':' in host else host}:{config.server.port}", key)


@contextmanager
def connected(at: Address) -> Iterator[httpx.Client]:
    """Raises Unavailable where nothing listens, and Failed for what the server refuses."""
    headers = {"authorization": f"Bearer {at.key}"}
    try:
        with httpx.Client(base_url=at.root, headers=headers, timeout=httpx.Timeout(10, read=None)) as client:
            yield client
    except httpx.TransportError as error:
        raise Unavailable(f"no server answers at {at.root} ({error}); start one with: enginehouse serve") from error


@contextmanager
def started(at: Address, config: Config, file: str | None) -> Iterator[None]:
    """A server for as long as this lasts, where none answers at the config's address."""
    if answers(at) or "ENGINEHOUSE_URL" in os.environ:
        yield
        return
    log = Path(config.cache_dir).expanduser() / LOG
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "enginehouse.server.cli.main", "serve", *(["--config", file] if file else [])]
    with log.open("w") as output:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        until = time.monotonic() + STARTED_SECONDS
        while not answers(at):
            if server.poll() is not None or time.monotonic() > until:
                raise Unavailable(f"the server did not start: {last_line(log)}; all of it is in {log}")
            time.sleep(0.1)
        yield
    finally:
        server.terminate()
        server.wait()


def answers(at: Address) -> bool:
    try:
        return httpx.get(f"{at.root}/health", timeout=2).status_code == 200
    except httpx.TransportError:
        return False


def last_line(file: Path) -> str:
    return (file.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]


def told(response: httpx.Response) -> Any:
    """The body, read whole; raises Failed with the message of an error."""
    response.read()
    try:
        body = response.json()
    except ValueError:
        raise Failed(
            f"{response.request.url} answers {response.status_code}, and no JSON: is it an Enginehouse?"
        ) from None
    if response.is_success:
        return body
    error = body.get("error", body) if isinstance(body, dict) else body
    raise Failed(error.get("message", str(error)) if isinstance(error, dict) else str(error))


def models(client: httpx.Client) -> list[dict[str, Any]]:
    """As GET /v1/models describes them."""
    listed: list[dict[str, Any]] = told(client.get("/v1/models"))["data"]
    return listed


def ask(client: httpx.Client, model: str, messages: list[dict[str, Any]], **fields: Any) -> Iterator[Part]:
    """An answer as it comes."""
    body = {"model": model, "messages": messages, "stream": True, "stream_options": {"include_usage": True}} | fields
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if not response.is_success:
            told(response)
        for line in response.iter_lines():
            if line.startswith(":"):
                yield Part(note=line[1:].strip())
            elif line.startswith("data: {"):
                yield from parts(json.loads(line.removeprefix("data: ")))


def parts(chunk: dict[str, Any]) -> Iterator[Part]:
    if "error" in chunk:
        raise Failed(chunk["error"]["message"])
    for choice in chunk["choices"]:
        delta = choice["delta"]
        if text := delta.get("content"):
            yield Part(text=text)
        if thought := delta.get("reasoning_content"):
            yield Part(thought=thought)
        for call in delta.get("tool_calls") or ():
            function = call["function"]
            yield Part(call=(function.get("name") or "") + (function.get("arguments") or ""))
    if usage := chunk.get("usage"):
        yield Part(usage=usage)
