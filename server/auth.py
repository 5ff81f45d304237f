"""API keys: a bearer token, or Anthropic's header, on everything but the health checks."""

import hmac
from collections.abc import Callable, Sequence
from typing import Any

from litestar.connection import ASGIConnection
from litestar.handlers.base import BaseRouteHandler

from enginehouse.server.errors import Unauthorized


def guard(keys: Sequence[str]) -> Callable[[ASGIConnection[Any, Any, Any, Any], BaseRouteHandler], None]:
    """A Litestar guard that admits a request with one of `keys`, or any request if there are none."""

    def check(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
        if not keys:
            return
        scheme, _space, token = connection.headers.get("authorization", "").partition(" ")
        sent = (token if scheme.lower() == "bearer" else "", connection.headers.get("x-api-key", ""))
        known = [
            hmac.compare_digest(one.encode(), key.encode()) for one in sent for key in keys
        ]  # every key, so that time tells nothing
        if not any(known):
            raise Unauthorized("a valid API key is needed: send 'Authorization: Bearer KEY' or 'x-api-key: KEY'")

    return check
