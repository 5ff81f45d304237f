"""Waiting for the first event of an answer: it decides the status, unless a model must be made ready first and the
client streams: then it is told how far that is, in comments, and errors come as events."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from litestar import Request
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.response import Stream

from runtimes.contract import EngineFailed, Event, Placed, Refused, Unavailable

T = TypeVar("T")
Events = AsyncGenerator[Event, None]
E = TypeVar("E", Event, tuple[int, Event])  # with the index of its answer, where there are several
Parts = AsyncGenerator[bytes, None]
SILENT_SECONDS = 2.0  # before the first comment
COMMENT_SECONDS = 1.0  # between two
# The client is gone when this is sent; it only names what happened in the log of a proxy in between.
CLIENT_CLOSED_REQUEST = 499


async def stream(
    request: Request[Any, Any, State],
    events: AsyncGenerator[E, None],
    waiting_for: Callable[[], str | None],
    body: Callable[[AsyncGenerator[E, None]], Parts],
    failure: Callable[[Exception], bytes],
) -> Stream:
    """The response to a streaming client. `waiting_for`: what is being made ready, None when nothing is; `body`
    renders the events after the first, `failure` what went wrong before it, once the status is out."""
    first = asyncio.ensure_future(anext(events))
    try:
        await unless_client_leaves(request, begun(first, waiting_for))
    except BaseException:
        first.cancel()
        raise
    headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
    if not first.done():
        return Stream(told(first, events, waiting_for, body, failure), media_type="text/event-stream", headers=headers)
    placed = placed_by(first.result())
    return Stream(body(events), media_type="text/event-stream", headers=headers | placed_headers(placed))


def placed_by(first: Event | tuple[int, Event]) -> Placed:
    placed = first[1] if isinstance(first, tuple) else first
    assert isinstance(placed, Placed)
    return placed


async def placed_first(events: AsyncGenerator[tuple[int, Event], None]) -> Placed:
    return placed_by(await anext(events))


async def begun(first: "asyncio.Future[E]", waiting_for: Callable[[], str | None]) -> None:
    while not first.done():
        await asyncio.wait([first], timeout=SILENT_SECONDS)
        if waiting_for():
            return


async def told(
    first: "asyncio.Future[E]",
    events: AsyncGenerator[E, None],
    waiting_for: Callable[[], str | None],
    body: Callable[[AsyncGenerator[E, None]], Parts],
    failure: Callable[[Exception], bytes],
) -> Parts:
    try:
        while not first.done():
            yield f": {waiting_for() or 'reading the prompt'}\n\n".encode()
            await asyncio.wait([first], timeout=COMMENT_SECONDS)
    except BaseException:
        first.cancel()  # and the events end with it
        raise
    async with aclosing(events):
        try:
            placed = placed_by(first.result())
        except (Refused, Unavailable, EngineFailed) as error:
            yield failure(error)
            return
        yield f": {placed.runtime} {placed.precision} answers: {placed.reason}\n\n".encode()
        async with aclosing(body(events)) as parts:
            async for part in parts:
                yield part


def placed_headers(placed: Placed) -> dict[str, str]:
    return {
        "x-enginehouse-runtime": placed.runtime,
        "x-enginehouse-precision": placed.precision,
        "x-enginehouse-device": placed.device,
        "x-enginehouse-reason": placed.reason,
    }


async def unless_client_leaves(request: Request[Any, Any, State], work: Coroutine[Any, Any, T]) -> T:
    """Litestar lets a handler run on when its client hangs up; this ends it, and with it the job in the engine."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(disconnected(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise HTTPException(detail="the client closed the connection", status_code=CLIENT_CLOSED_REQUEST)
    finally:
        task.cancel()
        gone.cancel()


async def disconnected(request: Request[Any, Any, State]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
