"""Measures the candidates of models in use that were never tried, when no request has come for a while."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from enginehouse.runtimes.errors import EngineFailed, Unavailable
from enginehouse.runtimes.pool import host
from enginehouse.runtimes.pool.decisions import Decisions
from enginehouse.runtimes.pool.loader import Loader
from enginehouse.runtimes.pool.routing import Figures, Ranked

log = logging.getLogger("enginehouse.measure")
IDLE_SECONDS = 20.0


class IdleBenchmark:
    def __init__(
        self, decisions: Decisions, loader: Loader, measure: Callable[[str, Ranked], Awaitable[Figures]]
    ) -> None:
        self._decisions, self._loader, self._measure = decisions, loader, measure
        self._in_use: set[str] = set()  # models that had a request
        self._measuring: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def note_request(self, name: str) -> None:
        """A request came: everything else waits."""
        self._in_use.add(name)
        self.stop()

    def start_timer(self) -> None:
        """Nothing is asked for now."""
        if self._timer:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._start)

    def stop(self) -> None:
        if self._timer:
            self._timer.cancel()
        if self._measuring:
            self._measuring.cancel()

    async def end(self) -> None:
        self.stop()
        if self._measuring:
            await asyncio.gather(self._measuring, return_exceptions=True)

    def _start(self) -> None:
        if self._measuring is None or self._measuring.done():
            self._measuring = asyncio.create_task(self._measure_untried())

    async def _measure_untried(self) -> None:
        """Every candidate of the models in use that has no figures yet, where there is more than one to choose from."""
        for name in sorted(self._in_use):
            decided = await self._decisions.of(name)
            if len(decided.decision.ranked) < 2:
                continue
            for ranked in decided.decision.ranked:
                if (
                    ranked.figures is None
                    and self._loader.building_bytes(decided.source, ranked.candidate) > host.free_memory()
                ):
                    log.info("'%s' is not measured on %s: building may not fit in memory", name, ranked.candidate.key)
                elif ranked.figures is None:
                    log.info("measuring '%s' on %s while nobody asks", name, ranked.candidate.key)
                    try:
                        await self._measure(name, ranked)
                    except asyncio.CancelledError:
                        log.info("measuring '%s' on %s ends: a request came", name, ranked.candidate.key)
                        raise
                    except (Unavailable, EngineFailed) as error:
                        log.warning("measuring '%s' on %s: %s", name, ranked.candidate.key, error)
