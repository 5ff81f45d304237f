"""Headers and comments hold what they may, whatever a model or a failure is called."""

import asyncio
from pathlib import Path

import httpx
import pytest

from enginehouse.runtimes.contract import Assigned
from enginehouse.server.keepalive import (
    FirstEvents,
    IndexedEvents,
    Parts,
    assigned_headers,
    commented,
    first_of,
)
from enginehouse.server.sse import comment
from tests.serving import serve


@pytest.mark.parametrize(
    "reason", ["日本 is parked", "died\r\nset-cookie: a=b", "ends in a blank ", "x" * 100_000, "\0\x7f"]
)
def test_headers_are_printable_ascii_of_at_most_200_characters(reason: str) -> None:
    for value in assigned_headers(Assigned("echo", reason, reason, reason, "fp")).values():
        assert value.isascii()
        assert value.isprintable()
        assert value == value.strip()
        assert len(value) <= 200


def test_a_comment_is_one_line() -> None:
    assert comment("dead:\ndata: {}\r\rhere") == b": dead: data: {} here\n\n"


def test_a_stream_that_had_to_wait_names_who_answers_as_the_headers_would() -> None:
    assigned = Assigned("echo", "as-is", "cpu", "died\nonce", "fp")

    async def events() -> IndexedEvents:
        yield 0, assigned

    async def body(first: FirstEvents, rest: IndexedEvents) -> Parts:
        yield b"data: answer\n\n"

    async def stream() -> list[bytes]:
        waiting = events()
        first = asyncio.create_task(first_of(waiting))
        return [part async for part in commented(first, waiting, lambda: "convert 40%", body, lambda error: b"")]

    lines = b"".join(asyncio.run(stream())).decode().split("\n\n")
    headers = [f": {name}: {value}" for name, value in assigned_headers(assigned).items()]
    assert lines == [": convert 40%", *headers, "data: answer", ""]


def test_a_model_with_a_name_beyond_ascii_answers_after_its_engine_died(tmp_path: Path) -> None:
    name = "日本"
    models = {name: {"source": "builtin:echo", "runtime": "echo", "options": {"echo": {"fails_on": "BOOM"}}}}
    with serve(tmp_path, models) as served:

        def ask(content: str) -> httpx.Response:
            body = {"model": name, "messages": [{"role": "user", "content": content}]}
            return httpx.post(f"{served.root}/v1/chat/completions", json=body, timeout=60)

        assert ask("BOOM").status_code == 500
        reply = ask("hi")
        assert (reply.status_code, reply.headers["x-enginehouse-runtime"]) == (200, "echo")
