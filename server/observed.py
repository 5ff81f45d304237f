"""Around the application: what is known of a request from outside. It is counted by its route and status, what its task
logs bears its id, and where there are traces it has a span."""

from collections.abc import Callable, MutableMapping
from typing import Any

from enginehouse.runtimes.metrics import HTTP_REQUESTS
from enginehouse.server import request_id
from enginehouse.server.traces import PARENT, QUIET, SCOPE, Traces, context_headers

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
NO_ROUTE = "none"
CLIENT_CLOSED_REQUEST = 499  # where it left before the head of its answer


def observed(app: Any, traces: Callable[[], Traces | None] = lambda: None) -> Any:
    async def call(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        id, status = scope.get(request_id.KEY, b"").decode(), CLIENT_CLOSED_REQUEST
        request_id.CURRENT.set(id)
        where = traces() if scope["path"] not in QUIET else None
        trace = where.begin(scope, id) if where else None
        if trace:
            scope[SCOPE] = trace
            request_id.TRACE.set(trace.trace_id)
        elif parent := context_headers(scope["headers"]).get(PARENT):
            request_id.TRACE.set(parent.split("-")[1])

        async def noted(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                HTTP_REQUESTS.labels(method_of(scope), route_of(scope), str(status)).inc()
            await send(message)

        try:
            await app(scope, receive, noted)
        finally:
            if trace:
                trace.end(method_of(scope), route_of(scope), status)

    return call


def method_of(scope: MutableMapping[str, Any]) -> str:
    """One of the few that there are: clients may send any word."""
    method: str = scope["method"]
    return method if method in METHODS else "other"


def route_of(scope: MutableMapping[str, Any]) -> str:
    """As the application names it, without what a client put in."""
    return str(scope.get("path_template") or NO_ROUTE)
