"""Measures the candidates of models in use that were never tried, when no request has come for a while."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from contextvars import Context

from enginehouse.optimize.artifact import Artifact, Source
from enginehouse.runtimes.errors import EngineFailed, Unavailable, UnknownModel
from enginehouse.runtimes.pool import host
from enginehouse.runtimes.pool.decisions import Decisions
from enginehouse.runtimes.pool.loader import Loader
from enginehouse.runtimes.pool.routing import Figures, Ranked

log = logging.getLogger("enginehouse.measure")
IDLE_SECONDS = 20.0


class IdleBenchmark:
    def __init__(
        self,
        decisions: Decisions,
        loader: Loader,
        prepare: Callable[[str, Ranked], Awaitable[Artifact]],
        measure: Callable[[str, Ranked], Awaitable[Figures]],
    ) -> None:
        self._decisions, self._loader, self._prepare, self._measure = decisions, loader, prepare, measure
        self._in_use: set[str] = set()  # models that had a request
        self._measuring: asyncio.Task[None] | None = None
        self._building: tuple[str, asyncio.Future[Artifact]] | None = None  # and for what; goes on beside requests
        self._timer: asyncio.TimerHandle | None = None

    def note_request(self, name: str) -> None:
        """A request came: everything else waits."""
        self._in_use.add(name)
        self.stop()

    def reconfigure(self, models: Collection[str]) -> None:
        """Measures these alone, as they are configured now."""
        self._in_use &= set(models)
        self.stop()

    def start_timer(self) -> None:
        """Nothing is asked for now."""
        if self._timer:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._start, context=Context())

    def stop(self) -> None:
        if self._timer:
            self._timer.cancel()
        if self._measuring:
            self._measuring.cancel()

    async def end(self) -> None:
        self.stop()
        if self._building:
            self._building[1].cancel()
            await asyncio.gather(self._building[1], return_exceptions=True)
        if self._measuring:
            await asyncio.gather(self._measuring, return_exceptions=True)

    def _start(self) -> None:
        if self._measuring is None or self._measuring.done():
            self._measuring = asyncio.create_task(self._measure_untried())

    async def _measure_untried(self) -> None:
        """What the models in use could run on and has no figures yet, where there is more than one to choose from."""
        for name in sorted(self._in_use):
            tried: set[str] = set()
            while untried := await self._untried(name, tried):
                source, ranked = untried
                key = ranked.candidate.key
                tried.add(key)
                if self._loader.building_bytes(source, ranked.candidate) > host.free_memory():
                    log.info("'%s' is not measured on %s: building may not fit in memory", name, key)
                    continue
                log.info("measuring '%s' on %s while nobody asks", name, key)
                try:
                    await self._built(name, ranked)
                    await self._measure(name, ranked)
                except asyncio.CancelledError:
                    log.info("measuring '%s' on %s ends: a request came", name, key)
                    raise
                except (Unavailable, EngineFailed, UnknownModel) as error:
                    log.warning("measuring '%s' on %s: %s", name, key, error)

    async def _untried(self, name: str, tried: Collection[str]) -> tuple[Source, Ranked] | None:
        """All engines first, then the best of them in more bits."""
        decided = await self._decisions.of(name)
        decision = decided.decision
        more = (decision.unmeasured,) if decision.unmeasured else ()
        if len(decision.ranked) + len(more) < 2:
            return None
        for ranked in (*decision.ranked, *more):
            if ranked.figures is None and ranked.candidate.key not in tried:
                return decided.source, ranked
        return None

    async def _built(self, name: str, ranked: Ranked) -> None:
        """One build at a time, and to its end: a request stops the wait for it, not the build,
        which would else begin anew at every pause. Raises Unavailable."""
        key = f"{name} on {ranked.candidate.key}"
        if self._building and self._building[0] != key:
            await asyncio.gather(asyncio.shield(self._building[1]), return_exceptions=True)
            self._building = None
        if self._building is None:
            self._building = key, asyncio.ensure_future(self._prepare(name, ranked))
        building = self._building[1]
        await asyncio.wait([building])
        self._building = None
        building.result()
