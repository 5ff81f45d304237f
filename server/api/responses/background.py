"""Responses that are made while no client waits: their events are kept, for who comes back to look or to listen on."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from enginehouse.runtimes.errors import RETRY_SECONDS, Busy, Refused
from enginehouse.server import sse
from enginehouse.server.api.responses.render import Fields, ResponseRenderer
from enginehouse.server.keepalive import Parts
from enginehouse.server.limits import BACKGROUND, BACKGROUND_BYTES, BACKGROUND_OF_A_KEY

COMMENT_SECONDS = 2.0
EVENTS_SECONDS = 600.0  # that they are kept after the end; the response itself is stored


class Running:
    """One response on its way, and for a while after it. `grown` is called when there are more events, `over` at its
    end."""

    def __init__(
        self, owner: str, renderer: ResponseRenderer, grown: Callable[[], None], over: Callable[[], None]
    ) -> None:
        self.owner, self._renderer = owner, renderer
        self.events: deque[bytes] = deque()
        self.first = 0  # the sequence number of the first of them: those before are let go
        self.size = 0  # their bytes
        self.ended = False
        self._grown, self._over = grown, over
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
            self.ended = True
            self._over()
            self._wake()

    def _keep(self, part: bytes) -> None:
        events = sse.events_of(part)
        self.events += events
        self.size += sum(map(len, events))
        self._grown()
        self._wake()

    def let_go(self) -> None:
        """Of the oldest event; the last one stays."""
        self.size -= len(self.events.popleft())
        self.first += 1

    def _wake(self) -> None:
        self._more.set()
        self._more = asyncio.Event()

    def check(self, after: int) -> None:
        if after + 1 < self.first:
            message = f"the events up to {self.first - 1} are not kept any more: they were too many; leave out 'stream'"
            raise Refused(message, "starting_after", "events_not_kept")

    async def listen(self, after: int) -> AsyncGenerator[bytes, None]:
        """All events whose sequence number is larger, as they come; comments while none do."""
        place = after + 1
        while True:
            more, ended = self._more, self.ended
            while place < self.first + len(self.events):
                if place < self.first:
                    yield sse.event("error", overtaken(place))
                    return
                yield self.events[place - self.first]
                place += 1
            if ended:
                return
            try:
                async with asyncio.timeout(COMMENT_SECONDS):
                    await more.wait()
            except TimeoutError:
                yield sse.comment(str(self.response["status"]))

    async def cancel(self) -> None:
        """Returns when it has ended, which it may have before. One that is being stored is what it is."""
        if self._task and not self.ended:
            if not self._task.cancelling() and not self._renderer.settled:
                self._task.cancel()
            await asyncio.wait([self._task])


class Background:
    """What they hold is bounded, all together: what has ended gives way first, the oldest before all; then the oldest
    events of the one that has most."""

    def __init__(self) -> None:
        self._held: dict[str, Running] = {}  # by id, the oldest first

    @property
    def under_way(self) -> int:
        return sum(not one.ended for one in self._held.values())

    def begin(
        self, owner: str, renderer: ResponseRenderer, parts: Parts, hold: Callable[[], Callable[[], None]]
    ) -> Running:
        """Raises Busy where as many are under way as may be, of all or of this owner. `hold` is called if not, and what
        it returns when the response has ended."""
        mine = sum(not one.ended for one in self._held.values() if one.owner == owner)
        if self.under_way >= BACKGROUND or (owner and mine >= BACKGROUND_OF_A_KEY):
            many = f"{mine} responses of this key" if mine >= BACKGROUND_OF_A_KEY else f"{BACKGROUND} responses"
            raise Busy(f"{many} are made in the background already", "queue_full", RETRY_SECONDS)

        let_go = hold()

        def over() -> None:
            let_go()
            asyncio.get_running_loop().call_later(EVENTS_SECONDS, self.forget, renderer.id)

        running = self._held[renderer.id] = Running(owner, renderer, self._bound, over)
        running.begin(parts)
        return running

    def get(self, owner: str, id: str) -> Running | None:
        running = self._held.get(id)
        return running if running and running.owner == owner else None

    def forget(self, id: str) -> None:
        self._held.pop(id, None)

    async def end(self) -> None:
        await asyncio.gather(*(one.cancel() for one in self._held.values()))

    def _bound(self) -> None:
        excess = sum(one.size for one in self._held.values()) - BACKGROUND_BYTES
        if excess <= 0:
            return
        for id, one in list(self._held.items()):
            if one.ended and excess > 0:
                excess -= one.size
                del self._held[id]
        while excess > 0 and (several := [one for one in self._held.values() if len(one.events) > 1]):
            largest = max(several, key=lambda one: one.size)
            excess -= len(largest.events[0])
            largest.let_go()


def overtaken(place: int) -> Fields:
    message = f"the event {place} and later ones came faster than they were read, and are not kept any more"
    return {"sequence_number": place, "code": "events_not_kept", "message": message, "param": None}
