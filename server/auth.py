"""Who may ask: API keys (a bearer token, or Anthropic's header) on everything but the health checks; without any, a
loopback server answers to loopback names alone."""

import hashlib
import hmac
import ipaddress
from collections.abc import Awaitable, Callable
from typing import Any

from litestar import Request
from litestar.connection import ASGIConnection
from litestar.handlers.base import BaseRouteHandler

from enginehouse.config.schema import Server
from enginehouse.server.errors import Forbidden, Unauthorized

Connection = ASGIConnection[Any, Any, Any, Any]
Guard = Callable[[Connection, BaseRouteHandler], Awaitable[None]]  # never sync: that would take a thread per request
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


def key_guard(server: Server) -> Guard:
    """Admits a request with one of the keys, or any request if there are none."""
    digests, batch = [digest(key) for key in server.keys], {digest(key) for key in server.batch_keys}

    async def check(connection: Connection, _: BaseRouteHandler) -> None:
        if not digests:
            return
        scheme, _space, token = connection.headers.get("authorization", "").partition(" ")
        candidates = (token if scheme.lower() == "bearer" else "", connection.headers.get("x-api-key", ""))
        sent = [digest(key) for key in candidates if key]
        # Every pair is compared, each in constant time: how long it takes tells nothing.
        matches = [one for one in sent for known in digests if hmac.compare_digest(one, known)]
        if not matches:
            raise Unauthorized("a valid API key is needed: send 'Authorization: Bearer KEY' or 'x-api-key: KEY'")
        connection.state.owner = matches[0].hex()
        connection.state.priority = "batch" if matches[0] in batch else "interactive"

    return check


def host_guard(server: Server) -> Guard:
    """Admits to a loopback server without keys only who calls it so: else a page in a browser, its own name turned to a
    loopback address, would be same-origin (DNS rebinding)."""
    names = {*LOOPBACK_NAMES, server.host.lower(), f"[{server.host.lower()}]"}
    open_to_all = bool(server.keys) or not is_loopback(server.host)

    async def check(connection: Connection, _: BaseRouteHandler) -> None:
        host = connection.headers.get("host", "").lower()
        if open_to_all or not host or host in names or host.rpartition(":")[0] in names:
            return
        raise Forbidden(f"this server answers to localhost, not to '{host}'; call it so, or set server.api_keys")

    return check


def owner_of(request: Request[Any, Any, Any]) -> str:
    """Whose request it is: a digest of its key, "" where no keys are asked for."""
    return str(getattr(request.state, "owner", ""))


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
