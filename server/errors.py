"""Every failure in OpenAI's shape, {"error": {message, type, param, code}}: the one table from exception to HTTP."""

import difflib
import logging
import math
from collections.abc import Iterable
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException

from enginehouse.runtimes.errors import (
    Busy,
    EngineFailed,
    Refused,
    TimedOut,
    Unavailable,
    UnknownModel,
    UpstreamFailed,
    in_full,
)

log = logging.getLogger("enginehouse.server")
NEAR, LONGEST_ROUTE = 0.85, 100  # how alike a path and a route are that may have been meant; letters
CLIENT_ERROR, SERVER_ERROR = "invalid_request_error", "server_error"


class Unauthorized(Exception):
    """No key that is known."""


class Forbidden(Exception):
    """Whoever asks may not."""

    def __init__(self, message: str, code: str = "forbidden") -> None:
        super().__init__(message)
        self.code = code


class RateLimited(Exception):
    """A limit of the key is reached; `retry_after` in seconds."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = max(1, math.ceil(retry_after))


class UnknownResponse(Exception):
    """No response of that id is stored."""


class UnknownConversation(Exception):
    """No conversation of that id is kept."""


class UnknownFile(Exception):
    """No file of that id is kept."""


class UnknownBatch(Exception):
    """No batch of that id is kept."""


class UnknownCompletion(Exception):
    """No chat completion of that id is stored."""


class ErrorBody(msgspec.Struct, frozen=True):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorReply(msgspec.Struct, frozen=True):
    error: ErrorBody


def describe(error: Exception) -> tuple[int, ErrorBody, dict[str, str]]:
    """Status, body and further headers for an exception, which the log is told of, without its words."""
    status, body, headers = described(error)
    log.log(logging.WARNING if status >= 500 else logging.INFO, "it failed, %d: %s", status, type(error).__name__)
    return status, body, headers


def described(error: Exception) -> tuple[int, ErrorBody, dict[str, str]]:
    match error:
        case Refused():
            return 400, ErrorBody(in_full(error), CLIENT_ERROR, error.param, error.code), {}
        case UnknownModel():
            return 404, ErrorBody(str(error), CLIENT_ERROR, "model", "model_not_found"), {}
        case UnknownResponse():
            return 404, ErrorBody(f"Response with id '{error}' not found.", CLIENT_ERROR), {}
        case UnknownConversation():
            return 404, ErrorBody(f"Conversation with id '{error}' not found.", CLIENT_ERROR), {}
        case UnknownFile():
            return 404, ErrorBody(f"No such File object: {error}", CLIENT_ERROR, "id"), {}
        case UnknownBatch():
            return 404, ErrorBody(f"No batch found with id '{error}'.", CLIENT_ERROR), {}
        case UnknownCompletion():
            return 404, ErrorBody(f"Chat completion with id '{error}' not found.", CLIENT_ERROR), {}
        case Unauthorized():
            return 401, ErrorBody(str(error), CLIENT_ERROR, None, "invalid_api_key"), {"www-authenticate": "Bearer"}
        case Forbidden():
            return 403, ErrorBody(str(error), CLIENT_ERROR, None, error.code), {}
        case RateLimited():
            body = ErrorBody(str(error), "rate_limit_error", None, "rate_limit_exceeded")
            return 429, body, {"retry-after": str(error.retry_after)}
        case TimedOut():
            return 504, ErrorBody(in_full(error), "timeout_error", None, error.code), {}
        case Unavailable():
            status, kind = (429, "rate_limit_error") if isinstance(error, Busy) else (503, SERVER_ERROR)
            headers = {"retry-after": str(error.retry_after)} if error.retry_after else {}
            return status, ErrorBody(in_full(error), kind, None, error.code), headers
        case UpstreamFailed():
            return 502, ErrorBody(in_full(error), SERVER_ERROR, None, "upstream_failed"), {}
        case EngineFailed():
            return 500, ErrorBody(str(error), SERVER_ERROR, None, "engine_failed"), {}
        case HTTPException():
            kind = CLIENT_ERROR if error.status_code < 500 else SERVER_ERROR
            return error.status_code, ErrorBody(error.detail, kind), dict(error.headers or {})
        case _:
            log.error("unexpected error", exc_info=error)
            return (
                500,
                ErrorBody(
                    "the server met an unexpected error; its log says more", SERVER_ERROR, None, "internal_error"
                ),
                {},
            )


def respond(request: Request[Any, Any, Any], error: Exception) -> Response[ErrorReply]:
    status, body, headers = describe_to(request, error)
    return Response(ErrorReply(body), status_code=status, headers=headers, media_type="application/json")


def describe_to(request: Request[Any, Any, Any], error: Exception) -> tuple[int, ErrorBody, dict[str, str]]:
    status, body, headers = describe(error)
    if isinstance(error, HTTPException) and status in (404, 405):
        method_or_path = f"{request.method} {request.url.path}"
        meant = meant_by(request.url.path, request.app.route_handler_method_map) if status == 404 else None
        hint = f"; did you mean {meant}?" if meant else ""
        body = msgspec.structs.replace(body, message=f"there is no {method_or_path} here{hint}", code="unknown_url")
    return status, body, headers


def meant_by(path: str, known: Iterable[str]) -> str | None:
    """The route that it ends with, whatever stands before that, or else the one that it is nearly."""
    routes = sorted((route for route in known if "{" not in route and route != "/"), key=len, reverse=True)
    asked = path.rstrip("/")
    ends = [route for route in routes if asked.endswith((route, route.removeprefix("/v1")))]
    near = difflib.get_close_matches(asked, routes, 1, NEAR) if len(asked) < LONGEST_ROUTE else []
    return next(iter([*ends, *near]), None)
