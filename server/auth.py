"""Who may ask: API keys (a bearer token, or Anthropic's header) on everything but the health checks; without any, a
loopback server answers to loopback names alone."""

import hashlib
import ipaddress
from collections.abc import Mapping
from typing import Any

import msgspec
from litestar import Request
from litestar.connection import ASGIConnection
from litestar.handlers.base import BaseRouteHandler

from enginehouse.config.schema import ApiKey, Server
from enginehouse.server.errors import Forbidden, Unauthorized

Connection = ASGIConnection[Any, Any, Any, Any]
# Guards are never sync: that would take a thread per request.
INTERNAL = "enginehouse.internal"  # of an ASGI scope
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


class Caller(msgspec.Struct, frozen=True):
    """Who sends a key."""

    owner: str  # a digest of it
    key: ApiKey
    admin: bool = False


class Internal(msgspec.Struct, frozen=True):
    """Of a request that the server asks itself, in somebody's name; no client can make one."""

    caller: Caller | None


class Access:
    """Who may ask, as one config says; a new one takes its place when the config changes."""

    def __init__(self, server: Server) -> None:
        self.names = {*LOOPBACK_NAMES, server.host.lower(), f"[{server.host.lower()}]"}
        self.asks_for_keys = bool(server.all_keys)
        self.any_host = self.asks_for_keys or not is_loopback(server.host)
        # Looked up by digest: how long that takes tells of a key's digest, and nothing of the key.
        named = {key.key: Caller(digest(key.key), key) for key in server.all_keys}
        named |= {key: Caller(digest(key), ApiKey(key), admin=True) for key in server.admin_keys}
        self._callers = {caller.owner: caller for caller in named.values()}

    def caller(self, headers: Mapping[str, str]) -> Caller | None:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        sent = (token if scheme.lower() == "bearer" else "", headers.get("x-api-key", ""))
        return next((found for key in sent if key and (found := self._callers.get(digest(key)))), None)

    def by_owner(self, owner: str) -> Caller | None:
        return self._callers.get(owner)

    def knows(self, owner: str) -> bool:
        """Whether what belongs to it can be asked for still."""
        return owner in self._callers or not (owner or self.asks_for_keys)


async def key_guard(connection: Connection, _: BaseRouteHandler) -> None:
    """Admits a request with one of the keys, or any request if there are none."""
    access: Access = connection.app.state.access
    internal = internal_of(connection)
    caller = internal.caller if internal else access.caller(connection.headers)
    if caller is None and access.asks_for_keys:
        raise Unauthorized("a valid API key is needed: send 'Authorization: Bearer KEY' or 'x-api-key: KEY'")
    if caller:
        connection.state.caller = caller
        connection.state.owner = caller.owner
        connection.state.priority = caller.key.priority


async def admin_guard(connection: Connection, _: BaseRouteHandler) -> None:
    """Admits operators; after the `key_guard`."""
    caller: Caller | None = getattr(connection.state, "caller", None)
    if caller is None or not caller.admin:
        raise Forbidden("this is for operators: send one of the config's server.admin_keys")


async def host_guard(connection: Connection, _: BaseRouteHandler) -> None:
    """Admits to a loopback server without keys only who calls it so: else a page in a browser, its own name turned to a
    loopback address, would be same-origin (DNS rebinding)."""
    access: Access = connection.app.state.access
    host = connection.headers.get("host", "").lower()
    if access.any_host or not host or host in access.names or host.rpartition(":")[0] in access.names:
        return
    raise Forbidden(f"this server answers to localhost, not to '{host}'; call it so, or set server.api_keys")


def internal_of(connection: Connection) -> Internal | None:
    found: Internal | None = connection.scope.get(INTERNAL)  # type: ignore[assignment]
    return found


def owner_of(request: Request[Any, Any, Any]) -> str:
    """Whose request it is: a digest of its key, "" where no keys are asked for."""
    return str(getattr(request.state, "owner", ""))


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
