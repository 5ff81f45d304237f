"""Waiting until an answer is admitted: that decides the status, unless a model must be made ready first and the client
streams: then comments say how far that is, and errors come as events. And a tick while its prompt is read."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from litestar import Request
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.response import Stream

from enginehouse.runtimes.contract import Assigned, Delta, Done, Event
from enginehouse.runtimes.errors import EngineFailed, Refused, Unavailable
from enginehouse.server.sse import EVENTS, Framing
from enginehouse.server.urgency import Deadline, deadline_of

T = TypeVar("T")
IndexedEvents = AsyncGenerator[tuple[int, Event], None]  # events with the index of their answer
FirstEvents = list[tuple[int, Event]]  # of them, until each answer has its Assigned; that is the first of them all
Parts = AsyncGenerator[bytes, None]
Body = Callable[[FirstEvents, IndexedEvents], Parts]
SILENT_SECONDS = 2.0  # before the first comment, and while an answer has nothing to show
COMMENT_SECONDS = 1.0  # between two
READING_SECONDS = 2.0  # the same while a prompt is read
MOST_IN_HEADER = 200  # characters
# The client is gone when this is sent; it only names what happened in the log of a proxy in between.
CLIENT_CLOSED_REQUEST = 499


async def stream_response(
    request: Request[Any, Any, State],
    events: IndexedEvents,
    answers: int,
    waiting_for: Callable[[], str | None],
    body: Body,
    failure: Callable[[Exception], bytes],
    framing: Framing = EVENTS,
) -> Stream:
    """The response to a streaming client, of so many answers. `waiting_for`: what is being made ready, None when
    nothing is; `body` renders the events, `failure` what went wrong before the first, once the status is out."""
    first = asyncio.create_task(first_of(events, answers))
    try:
        await unless_client_leaves(request, first_or_loading(first, waiting_for))
    except BaseException:
        first.cancel()
        raise
    headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
    if not first.done():
        parts = commented(first, events, waiting_for, body, failure, framing)
        return Stream(parts, media_type=framing.media_type, headers=headers)
    headers |= assigned_headers(assigned_of(first.result()))
    return Stream(body(first.result(), events), media_type=framing.media_type, headers=headers)


async def first_of(events: IndexedEvents, answers: int = 1) -> FirstEvents:
    """What comes until all answers are admitted: nothing can be refused any more."""
    first, admitted = FirstEvents(), set[int]()
    while len(admitted) < answers:
        index, event = await anext(events)
        first.append((index, event))
        admitted.add(index)
    return first


def assigned_of(first: FirstEvents) -> Assigned:
    """Every answer begins with who gives it, and so do all together."""
    _, assigned = first[0]
    assert isinstance(assigned, Assigned)
    return assigned


async def first_or_loading(first: "asyncio.Task[FirstEvents]", waiting_for: Callable[[], str | None]) -> None:
    while not first.done():
        await asyncio.wait([first], timeout=SILENT_SECONDS)
        if waiting_for():
            return


async def commented(
    first: "asyncio.Task[FirstEvents]",
    events: IndexedEvents,
    waiting_for: Callable[[], str | None],
    body: Body,
    failure: Callable[[Exception], bytes],
    framing: Framing = EVENTS,
) -> Parts:
    try:
        while not first.done():
            yield framing.comment(waiting_for() or "looking at the prompt")
            await asyncio.wait([first], timeout=COMMENT_SECONDS)
    except BaseException:
        first.cancel()  # and the events end with it
        raise
    try:
        assigned = assigned_of(first.result())
    except (Refused, Unavailable, EngineFailed) as error:
        yield failure(error)
        return
    try:
        yield assigned_comments(assigned, framing)
    except BaseException:
        await events.aclose()  # from here on the body ends them
        raise
    async with aclosing(body(first.result(), events)) as parts:
        async for part in parts:
            yield part


async def ticking(first: FirstEvents, events: IndexedEvents) -> AsyncGenerator[tuple[int, Event] | None, None]:
    """All events, and every few seconds until the first word of an answer None: a prompt is read. It ends `events`."""
    now, waiting = asyncio.get_running_loop().time, None
    tick = now() + READING_SECONDS
    try:
        for one in first:
            yield one
        said = any(isinstance(event, Delta | Done) for _, event in first)
        while not said:
            waiting = asyncio.ensure_future(anext(events, None))
            while not waiting.done():
                await asyncio.wait([waiting], timeout=tick - now())
                if now() >= tick:
                    yield None
                    tick = now() + READING_SECONDS
            if (pair := waiting.result()) is None:
                return
            yield pair
            said = isinstance(pair[1], Delta | Done)
        async for one in events:
            yield one
    finally:
        if waiting and not waiting.done():
            waiting.cancel()  # and the events end with it
        else:
            await events.aclose()


async def until(deadline: Deadline, events: IndexedEvents) -> IndexedEvents:
    """The events that come in time; then it raises TimedOut, and they end."""
    async with aclosing(events):
        while True:
            try:
                async with asyncio.timeout_at(deadline.at):
                    event = await anext(events)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise deadline.missed() from None
            yield event


def assigned_headers(assigned: Assigned) -> dict[str, str]:
    names = ("runtime", "precision", "device", "reason")
    return {f"x-enginehouse-{name}": header_value(getattr(assigned, name)) for name in names}


def assigned_comments(assigned: Assigned, framing: Framing = EVENTS) -> bytes:
    """The same in the middle of a stream."""
    return b"".join(framing.comment(f"{name}: {value}") for name, value in assigned_headers(assigned).items())


def header_value(text: str) -> str:
    """Models are called as people like, and reasons quote failures: what no header may hold becomes a question mark."""
    printable = "".join(letter if " " <= letter <= "~" else "?" for letter in text[:MOST_IN_HEADER])
    return printable.strip()


async def unless_client_leaves(request: Request[Any, Any, State], work: Coroutine[Any, Any, T]) -> T:
    """What comes of it, unless its time is over before. Litestar lets a handler run on when its client hangs up; this
    ends it, and with it the job in the engine."""
    deadline = deadline_of(request)
    task = asyncio.create_task(work)
    gone = asyncio.create_task(disconnected(request))
    try:
        left = deadline.at - asyncio.get_running_loop().time() if deadline else None
        await asyncio.wait((task, gone), timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if deadline and not gone.done():
            raise deadline.missed()
        raise HTTPException(detail="the client closed the connection", status_code=CLIENT_CLOSED_REQUEST)
    finally:
        task.cancel()
        gone.cancel()


async def disconnected(request: Request[Any, Any, State]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
