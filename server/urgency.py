"""How urgent a request is: whether a person waits for the answer, and until when it is of use. Headers say so; else the
key does, and the config."""

import asyncio
import math
import re
from typing import Any, get_args

from litestar import Request
from litestar.connection import ASGIConnection
from litestar.handlers.base import BaseRouteHandler

from enginehouse.config.schema import seconds
from enginehouse.runtimes.contract import Priority
from enginehouse.runtimes.errors import Refused, TimedOut
from enginehouse.runtimes.pool.pool import Pool
from enginehouse.server.auth import internal_of

Connection = ASGIConnection[Any, Any, Any, Any]
PRIORITY, TIMEOUT = "x-priority", "x-request-timeout"
PRIORITIES: tuple[Priority, ...] = get_args(Priority)
NUMBER = re.compile(r"[0-9]{1,9}([.][0-9]{1,9})?")


class Deadline:
    def __init__(self, after_seconds: float) -> None:
        self.seconds = after_seconds
        self.at = asyncio.get_running_loop().time() + after_seconds

    def missed(self) -> TimedOut:
        return TimedOut(f"the answer was not finished within {self.seconds:g} s, as {TIMEOUT} or the config wants it")


async def urgency_guard(connection: Connection, _: BaseRouteHandler) -> None:
    """Reads a POST's headers, and refuses what they cannot mean. The time begins when they have come."""
    if connection.scope.get("method") != "POST":
        return
    if internal_of(connection):
        connection.state.priority, connection.state.deadline = "batch", None
        return
    if (priority := connection.headers.get(PRIORITY)) is not None:
        connection.state.priority = read_priority(priority)
    pool: Pool = connection.app.state.pool
    configured, wanted = seconds(pool.config.server.request_timeout), connection.headers.get(TIMEOUT)
    allowed = min(math.inf if configured is None else configured, math.inf if wanted is None else read_seconds(wanted))
    connection.state.deadline = Deadline(allowed) if allowed < math.inf else None


def read_priority(sent: str) -> Priority:
    if sent not in PRIORITIES:
        raise Refused(f"'{PRIORITY}' may be {' or '.join(PRIORITIES)}, not '{sent}'", PRIORITY, "invalid_value")
    return sent


def read_seconds(sent: str) -> float:
    if not NUMBER.fullmatch(sent) or not float(sent):
        raise Refused(f"'{TIMEOUT}' is a number of seconds such as 30 or 0.5, not '{sent}'", TIMEOUT, "invalid_value")
    return float(sent)


def priority_of(request: Request[Any, Any, Any]) -> Priority:
    priority: Priority = getattr(request.state, "priority", "interactive")
    return priority


def deadline_of(request: Request[Any, Any, Any]) -> Deadline | None:
    deadline: Deadline | None = getattr(request.state, "deadline", None)
    return deadline
