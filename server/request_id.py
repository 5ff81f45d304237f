"""The id that every answer bears, in its headers and in the log: the client's own, or one of ours."""

import re
import secrets
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Any

from litestar.connection import ASGIConnection
from litestar.handlers.base import BaseRouteHandler

from enginehouse.runtimes.errors import Refused

HEADER, ANTHROPICS = "x-request-id", "request-id"
LETTERS = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
KEY = "enginehouse.request_id"  # of an ASGI scope
CURRENT = ContextVar("request_id", default="")  # of the request that a task works for
TRACE = ContextVar("trace_id", default="")  # W3C's, of the same


def id_for(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    sent = next((value for name, value in headers if name == HEADER.encode()), b"")
    return sent if LETTERS.fullmatch(sent) else f"req_{secrets.token_hex(12)}".encode()


def headers_of(id: bytes) -> list[tuple[bytes, bytes]]:
    return [(HEADER.encode(), id), (ANTHROPICS.encode(), id)]


def id_of(connection: ASGIConnection[Any, Any, Any, Any]) -> str:
    """ "" where the request came in another way than by our connections."""
    id: bytes = connection.scope.get(KEY, b"")  # type: ignore[assignment]
    return id.decode()


async def request_id_guard(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
    sent = connection.headers.get(HEADER)
    if sent is not None and not LETTERS.fullmatch(sent.encode("latin-1")):
        raise Refused(f"'{HEADER}' is 1 to 128 of A-Z a-z 0-9 . _ : / + = -", HEADER, "invalid_value")
