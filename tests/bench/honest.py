"""Honest clients beside an attack: streams one after the other, and /health every 20 ms, in a process of their own.

`python -m tests.bench.honest HOST PORT MODEL STREAMS` prints what they saw, as JSON, when its stdin ends.
"""

import asyncio
import contextlib
import json
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Self
from urllib.parse import urlsplit

POLL_SECONDS = 0.02
AGAIN_SECONDS = 0.05  # after an answer that failed
CONTENT = re.compile(rb'"content":"((?:[^"\\]|\\.)+)"')
MESSAGES = [{"role": "user", "content": "Tell me a story about a fox."}]


@dataclass
class Record:
    """Moments are of time.monotonic(), which all processes of a machine share."""

    texts: list[list[tuple[float, int]]] = field(default_factory=list)  # of each stream: when, how many characters
    failures: list[float] = field(default_factory=list)
    health: list[list[float]] = field(default_factory=list)  # [asked, answered], the last perhaps without an answer


@dataclass(frozen=True)
class Seen:
    gap: float  # seconds, the longest that a stream stood still
    speed: float  # characters a second, of all streams
    failures: int
    health: list[float]  # seconds, sorted

    def percentile(self, share: float) -> float:
        return self.health[min(len(self.health) - 1, int(share * len(self.health)))]


class Clients:
    """The process, from the outside; `record` is there once it is left."""

    def __init__(self, root: str, model: str, streams: int) -> None:
        url = urlsplit(root)
        self._command = [sys.executable, "-m", "tests.bench.honest", str(url.hostname), str(url.port), model]
        self._command.append(str(streams))
        self.record = Record()

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.record = Record(**json.loads(self._process.communicate(timeout=60)[0]))


def seen(record: Record, begin: float, end: float) -> Seen:
    """What a record says of the time between two moments. A poll that waited stands for those not asked meanwhile."""
    gap, characters = 0.0, 0
    for stream in record.texts:
        within = [(at, count) for at, count in stream if begin <= at <= end]
        moments = [begin, *(at for at, _ in within), end]
        gap = max(gap, *(after - before for before, after in pairwise(moments)))
        characters += sum(count for _, count in within)
    health = []
    for asked, *then in record.health:
        waited = min([*then, end]) - max(asked, begin)
        if waited > 0:
            health += [waited - POLL_SECONDS * missed for missed in range(int(waited / POLL_SECONDS) + 1)]
    failures = sum(begin <= at <= end for at in record.failures)
    return Seen(gap, characters / (end - begin), failures, sorted(health) or [end - begin])


async def stream(address: tuple[str, int], model: str, record: Record) -> None:
    texts: list[tuple[float, int]] = []
    record.texts.append(texts)
    body = json.dumps({"model": model, "messages": MESSAGES, "temperature": 0, "stream": True, "max_tokens": 200})
    while True:
        whole = False
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection(*address)
            try:
                writer.write(request("POST /v1/chat/completions", address, body.encode()))
                async for line in reader:
                    if found := CONTENT.search(line):
                        texts.append((time.monotonic(), len(found[1])))
                    if whole := line.startswith(b"data: [DONE]"):
                        break
            finally:
                writer.close()
        if not whole:
            record.failures.append(time.monotonic())
            await asyncio.sleep(AGAIN_SECONDS)


async def poll(address: tuple[str, int], record: Record) -> None:
    while True:
        asked = [time.monotonic()]
        record.health.append(asked)
        await answered(address)
        asked.append(time.monotonic())
        await asyncio.sleep(max(0, asked[0] + POLL_SECONDS - asked[1]))


async def answered(address: tuple[str, int]) -> None:
    while True:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection(*address)
            try:
                writer.write(request("GET /health", address))
                if (await reader.read()).startswith(b"HTTP/1.1 200"):
                    return
            finally:
                writer.close()
        await asyncio.sleep(AGAIN_SECONDS)


def request(line: str, address: tuple[str, int], body: bytes = b"") -> bytes:
    length = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n" if body else ""
    return f"{line} HTTP/1.1\r\nhost: {address[0]}:{address[1]}\r\nconnection: close\r\n{length}\r\n".encode() + body


async def main(host: str, port: str, model: str, streams: str) -> dict[str, Any]:
    address, record = (host, int(port)), Record()
    tasks = [asyncio.create_task(stream(address, model, record)) for _ in range(int(streams))]
    tasks.append(asyncio.create_task(poll(address, record)))
    await asyncio.to_thread(sys.stdin.read)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return vars(record)


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(*sys.argv[1:]))))
