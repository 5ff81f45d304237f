"""Stand-ins: what answers a model's first requests while something better is built, and the change to that."""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Collection, Coroutine, Mapping
from typing import Any, TypeVar

from enginehouse.config.schema import Config
from enginehouse.runtimes.errors import EngineFailed, Unavailable, shutting_down
from enginehouse.runtimes.pool import routing
from enginehouse.runtimes.pool.decisions import Decisions
from enginehouse.runtimes.pool.loaded_models import LoadedModel, LoadedModels, Needs
from enginehouse.runtimes.pool.loader import Loader
from enginehouse.runtimes.pool.progress import ProgressTracker
from enginehouse.runtimes.pool.routing import Decision, Ranked
from enginehouse.runtimes.pool.threads import Threads

log = logging.getLogger("enginehouse.stand_ins")
T = TypeVar("T")
GAVE_UP_SECONDS = 600.0  # after nothing better could be built, before that is tried again


class StandIns:
    def __init__(
        self,
        config: Config,
        decisions: Decisions,
        loader: Loader,
        models: LoadedModels,
        progress: ProgressTracker,
        threads: Threads,
    ) -> None:
        self._config, self._decisions, self._loader = config, decisions, loader
        self._models, self._progress, self._threads = models, progress, threads
        self._replacing: dict[str, asyncio.Task[None]] = {}  # models for which something better is built
        self._gave_up_until: defaultdict[str, float] = defaultdict(float)
        self._waiting: set[asyncio.Timeout] = set()
        self._draining = False

    async def lease(self, name: str, needs: Needs, tried: dict[str, str], seconds: float | None) -> LoadedModel:
        """What can answer soonest, within that time: of a model that is configured anew, what was loaded before. A
        client that leaves or is sent away does not end what it waited for: that is built to its end."""

        if outdated := self._models.outdated(name, needs):
            self.start_replacing(name)
            return outdated

        async def instead(decision: Decision, best: Ranked) -> Ranked | None:
            other = await self._choose(name, decision, best, needs, tried)
            if other:
                self.start_replacing(name)
            return other

        return await self.waited(name, self._models.lease(name, needs, tried, instead), seconds)

    async def waited(self, name: str, work: Coroutine[Any, Any, T], seconds: float | None) -> T:
        """What comes of it within that time; Unavailable afterwards, with how far the model is, and on `interrupt`."""
        try:
            async with asyncio.timeout(0 if self._draining else seconds) as limit:
                self._waiting.add(limit)
                try:
                    return await work
                finally:
                    self._waiting.discard(limit)
        except asyncio.CancelledError:
            if not self._models.has(name):
                self.start_replacing(name)
            raise
        except TimeoutError:
            if self._draining:
                raise shutting_down() from None
            if not self._models.has(name):
                self.start_replacing(name)
            message = f"model '{name}' is not ready yet: {self._progress.describe(name)}; ask again"
            after = max(1, round(self._progress.of(name).seconds_left))
            raise Unavailable(message, "model_loading", after) from None

    def reconfigure(self, config: Config, changed: Collection[str], gone: Collection[str]) -> None:
        """What is loaded of changed models is replaced by what is configured now."""
        self._config = config
        for name in changed:
            self._gave_up_until.pop(name, None)
            if self._models.has(name):
                self.start_replacing(name)
        for name in gone:
            if name in self._replacing:
                self._replacing[name].cancel()

    def replacing(self, name: str | None = None) -> bool:
        """Whether something better is being made for a model, or for any."""
        return name in self._replacing if name else bool(self._replacing)

    def interrupt(self) -> None:
        """Whoever waits, waits no longer."""
        self._draining = True
        for limit in self._waiting:
            if not limit.expired():
                limit.reschedule(asyncio.get_running_loop().time())

    async def end(self) -> None:
        self._draining = True
        tasks = list(self._replacing.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _choose(
        self, name: str, decision: Decision, best: Ranked, needs: Needs, tried: Mapping[str, str]
    ) -> Ranked | None:
        """What answers now, while `best` is built; None when that is not worth it."""
        if self._models.in_memory(name, best.candidate) or self._config.optimize.first_load == "wait":
            return None
        others, unquantized = (
            [r for r in some if r.candidate.key not in (*tried, best.candidate.key) and not routing.lacking(r, needs)]
            for some in (decision.ranked, decision.unquantized)
        )
        for other in (*others, *unquantized):
            if self._models.in_memory(name, other.candidate):
                return other
        source = (await self._decisions.of(name)).source
        return await self._threads.run(name, self._loader.quickest, source, best.candidate, others, unquantized)

    def start_replacing(self, name: str) -> None:
        """Builds what should serve a model, in the place of what serves it now."""
        if name not in self._replacing and time.monotonic() > self._gave_up_until[name] and not self._draining:
            task = self._replacing[name] = asyncio.create_task(self._replace(name))
            task.add_done_callback(lambda _: self._replacing.pop(name))

    async def _replace(self, name: str) -> None:
        tried: dict[str, str] = {}
        try:
            try:
                loaded = await self._models.lease(name, (), tried)
            except Unavailable as error:
                if error.code != "no_memory":
                    raise
                await self._models.retire(name, None)  # not room for both at once: who comes meanwhile waits
                loaded = await self._models.lease(name, (), tried)
        except (Unavailable, EngineFailed) as error:
            self._gave_up_until[name] = time.monotonic() + GAVE_UP_SECONDS
            log.warning("'%s' goes on with what stands in: %s", name, error)
            return
        log.info("'%s' is served by %s from now on", name, loaded.candidate.key)
        await self._models.retire(name, loaded)
