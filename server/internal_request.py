"""A request that the server asks itself in the name of a key, by the same routes as anybody's: a line of a batch."""

import asyncio
from typing import Any

import msgspec
from litestar import Litestar

from enginehouse.server import auth, rate_limits, request_id
from enginehouse.server.auth import Caller, Internal


class Reply(msgspec.Struct, frozen=True):
    status: int
    headers: dict[str, str]
    body: bytes


async def ask(app: Litestar, path: str, body: bytes, caller: Caller | None, id: str) -> Reply:
    """A POST of JSON, as urgent as a batch is. Cancelling it frees what it holds."""
    sent, status, headers, received = False, 0, dict[str, str](), list[bytes]()

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if sent:
            await asyncio.Event().wait()  # who asks stays until it is answered
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
            headers.update((name.decode("latin-1"), value.decode("latin-1")) for name, value in message["headers"])
        elif message["type"] == "http.response.body":
            received.append(message.get("body", b""))

    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())],
        "client": None,
        "server": None,
        "state": {},
        auth.INTERNAL: Internal(caller),
        rate_limits.SCOPE: rate_limits.Metered(),
        request_id.KEY: id.encode(),
    }
    await app(scope, receive, send)  # type: ignore[arg-type]
    return Reply(status, headers, b"".join(received))
