"""An answer on its way out in one of the newer dialects: whole, or told block by block."""

import functools
from contextlib import aclosing
from typing import Any, Protocol

from litestar import Request
from litestar.datastructures import State
from litestar.response import Stream

from runtimes.contract import Delta, Done, EngineFailed, Job, Placed, Unavailable
from runtimes.pool import Pool
from server import waiting
from server.blocks import Block, Blocks, Step, collect
from server.chat import log_end
from server.sse import encode
from server.waiting import Events, Parts, placed_headers, unless_client_leaves


class Teller(Protocol):
    """Renders one answer as a dialect's events."""

    def opening(self) -> bytes: ...
    def step(self, step: Step) -> bytes: ...
    async def closing(self, blocks: list[Block], done: Done) -> bytes: ...
    def failure(self, blocks: list[Block], error: Exception) -> bytes: ...


async def whole(request: Request[Any, Any, State], job: Job) -> tuple[list[Block], Done, dict[str, str]]:
    """The answer, and the headers that name who gave it."""
    events = log_end(job, request.app.state.pool.run(job))
    placed = await unless_client_leaves(request, anext(events))
    assert isinstance(placed, Placed)
    blocks, done = await unless_client_leaves(request, collect(events))
    return blocks, done, placed_headers(placed)


async def streamed(request: Request[Any, Any, State], job: Job, teller: Teller) -> Stream:
    pool: Pool = request.app.state.pool
    events = log_end(job, pool.run(job))
    waiting_for = functools.partial(pool.waiting_for, pool.resolve(job.model))
    tells, fails = functools.partial(tell, teller), functools.partial(fail, teller)
    return await waiting.stream(request, events, waiting_for, tells, fails)


async def tell(teller: Teller, events: Events) -> Parts:
    """The body. Headers are out by now, so an error becomes an event, and another engine's name a comment."""
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
            yield teller.failure(blocks.all, error)


def fail(teller: Teller, error: Exception) -> bytes:
    """What failed before it began, with its status out: clients want to see it begin all the same."""
    return teller.opening() + teller.failure([], error)


def frame(kind: str, fields: dict[str, Any]) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + encode({"type": kind, **fields}) + b"\n\n"
