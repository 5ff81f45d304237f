"""Responses that are made while no client waits: their events are kept, for who comes back to look or to listen on."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from enginehouse.runtimes.errors import RETRY_SECONDS, Busy
from enginehouse.server import sse
from enginehouse.server.api.responses.render import Fields, ResponseRenderer
from enginehouse.server.keepalive import Parts
from enginehouse.server.limits import BACKGROUND, BACKGROUND_BYTES

COMMENT_SECONDS = 2.0
EVENTS_SECONDS = 600.0  # that they are kept after the end; the response itself is stored


class Running:
    """One response on its way, and for a while after it."""

    def __init__(self, owner: str, renderer: ResponseRenderer) -> None:
        self.owner, self._renderer = owner, renderer
        self.events: list[bytes] = []  # each in the place of its sequence number
        self.size = 0  # their bytes
        self.ended: float | None = None  # when
        self._more = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def response(self) -> Fields:
        return self._renderer.response

    def begin(self, parts: Parts) -> None:
        self._keep(self._renderer.queued())
        self._task = asyncio.create_task(self._follow(parts))

    async def _follow(self, parts: Parts) -> None:
        try:
            async with aclosing(parts):
                async for part in parts:
                    self._keep(part)
            await self._renderer.keep_failed()
        except asyncio.CancelledError:
            self._keep(await self._renderer.cancelled())
        finally:
            self.ended = time.monotonic()
            self._wake()

    def _keep(self, part: bytes) -> None:
        """A part may hold several events, and comments, which nobody comes back for."""
        events = [event + b"\n\n" for event in part.split(b"\n\n") if event.startswith(b"event: ")]
        self.events += events
        self.size += sum(map(len, events))
        self._wake()

    def _wake(self) -> None:
        self._more.set()
        self._more = asyncio.Event()

    async def listen(self, after: int) -> AsyncGenerator[bytes, None]:
        """All events whose sequence number is larger, as they come; comments while none do."""
        place = after + 1
        while True:
            more, ended = self._more, self.ended is not None
            while place < len(self.events):
                yield self.events[place]
                place += 1
            if ended:
                return
            try:
                async with asyncio.timeout(COMMENT_SECONDS):
                    await more.wait()
            except TimeoutError:
                yield sse.comment(str(self.response["status"]))

    async def cancel(self) -> None:
        """Returns when it has ended, which it may have before."""
        if self._task and self.ended is None:
            if not self._task.cancelling():  # a second one would break off what the first stores
                self._task.cancel()
            await asyncio.wait([self._task])


class Background:
    def __init__(self) -> None:
        self._held: dict[str, Running] = {}  # by id, the oldest first

    @property
    def under_way(self) -> int:
        return sum(one.ended is None for one in self._held.values())

    def begin(self, owner: str, renderer: ResponseRenderer, parts: Parts) -> Running:
        """Raises Busy where as many are under way as may be."""
        self._drop()
        if self.under_way >= BACKGROUND:
            raise Busy(f"{BACKGROUND} responses are made in the background already", "queue_full", RETRY_SECONDS)
        running = self._held[renderer.id] = Running(owner, renderer)
        running.begin(parts)
        return running

    def get(self, owner: str, id: str) -> Running | None:
        self._drop()
        running = self._held.get(id)
        return running if running and running.owner == owner else None

    def forget(self, id: str) -> None:
        self._held.pop(id, None)

    async def end(self) -> None:
        await asyncio.gather(*(one.cancel() for one in self._held.values()))

    def _drop(self) -> None:
        """What has ended long ago, and the oldest of it where there is too much."""
        size, now = sum(one.size for one in self._held.values()), time.monotonic()
        for id, one in list(self._held.items()):
            if one.ended is not None and (now - one.ended > EVENTS_SECONDS or size > BACKGROUND_BYTES):
                size -= one.size
                del self._held[id]
