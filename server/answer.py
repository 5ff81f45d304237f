"""What the newer dialects do around an answer: the first event decides the status, then it is told block by block."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, Protocol

from litestar import Request
from litestar.datastructures import State
from litestar.response import Stream

from runtimes.contract import Delta, Done, EngineFailed, Event, Job, Placed, Unavailable
from server.blocks import Block, Blocks, Step
from server.chat import log_end, placed_headers, unless_client_leaves
from server.sse import encode


class Teller(Protocol):
    """Renders one answer as a dialect's events."""

    def opening(self) -> bytes: ...
    def step(self, step: Step) -> bytes: ...
    async def closing(self, blocks: list[Block], done: Done) -> bytes: ...
    async def failure(self, blocks: list[Block], error: Exception) -> bytes: ...


async def begin(request: Request[Any, Any, State], job: Job) -> tuple[AsyncGenerator[Event, None], dict[str, str]]:
    """The events after the first, and the headers that name who answers."""
    events = log_end(job, request.app.state.pool.run(job))
    placed = await unless_client_leaves(request, anext(events))
    assert isinstance(placed, Placed)
    return events, placed_headers(placed)


def streamed(events: AsyncGenerator[Event, None], teller: Teller, headers: dict[str, str]) -> Stream:
    headers = headers | {"cache-control": "no-cache", "x-accel-buffering": "no"}
    return Stream(tell(events, teller), media_type="text/event-stream", headers=headers)


async def tell(events: AsyncGenerator[Event, None], teller: Teller) -> AsyncIterator[bytes]:
    blocks = Blocks()
    async with aclosing(events):
        yield teller.opening()
        try:
            async for event in events:
                match event:
                    case Delta():
                        for step in blocks.feed(event):
                            yield teller.step(step)
                    case Done():
                        for step in blocks.end(event):
                            yield teller.step(step)
                        yield await teller.closing(blocks.all, event)
                    case Placed(runtime, precision):
                        yield f": its engine died; {runtime} {precision} goes on\n\n".encode()
        except (EngineFailed, Unavailable) as error:
            yield await teller.failure(blocks.all, error)


def frame(kind: str, fields: dict[str, Any]) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + encode({"type": kind, **fields}) + b"\n\n"
