"""Around the application: what is known of a request from outside, counted by its route and status."""

from collections.abc import MutableMapping
from typing import Any

from enginehouse.runtimes.metrics import HTTP_REQUESTS

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
NO_ROUTE = "none"


def observed(app: Any) -> Any:
    async def call(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return

        async def counted(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                HTTP_REQUESTS.labels(method_of(scope), route_of(scope), str(message["status"])).inc()
            await send(message)

        await app(scope, receive, counted)

    return call


def method_of(scope: MutableMapping[str, Any]) -> str:
    """One of the few that there are: clients may send any word."""
    method: str = scope["method"]
    return method if method in METHODS else "other"


def route_of(scope: MutableMapping[str, Any]) -> str:
    """As the application names it, without what a client put in."""
    return str(scope.get("path_template") or NO_ROUTE)
