"""Models in memory: leased to requests, replaced by better ones, unloaded for others or when nobody asks."""

import asyncio
import functools
import hashlib
import itertools
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from contextvars import Context
from typing import Any

import msgspec

from enginehouse.config.schema import Config, seconds
from enginehouse.optimize.artifact import Artifact, Source
from enginehouse.runtimes.contract import Assigned, Local
from enginehouse.runtimes.errors import NoMemory, Unavailable, WorkerDied
from enginehouse.runtimes.metrics import LOAD_SECONDS
from enginehouse.runtimes.pool import routing
from enginehouse.runtimes.pool.decisions import Decisions, leaving
from enginehouse.runtimes.pool.loader import Loader
from enginehouse.runtimes.pool.memory import Key, Memory
from enginehouse.runtimes.pool.progress import ProgressTracker
from enginehouse.runtimes.pool.routing import Candidate, Decision, Ranked
from enginehouse.runtimes.pool.threads import Threads
from enginehouse.runtimes.worker.client import Worker

log = logging.getLogger("enginehouse.models")
Needs = Collection[tuple[str, str]]  # a feature, and the field that asks for it
Instead = Callable[[Decision, Ranked], Awaitable[Ranked | None]]  # of the best: what may answer in its place


class LoadedModel:
    """A model in memory."""

    retired = False  # another serves in its place: it ends with the last request it has
    outdated = False  # loaded as a config said that holds no more: it answers until another can

    def __init__(
        self,
        worker: Worker,
        ranked: Ranked,
        artifact: Artifact,
        source: Source,
        fingerprint: str,
        stands_in: bool = False,
    ) -> None:
        self.worker, self.ranked, self.candidate, self.source = worker, ranked, ranked.candidate, source
        self.key = worker.name, ranked.candidate.key
        self.artifact, self.stands_in = artifact, stands_in
        self.assigned = Assigned(
            ranked.candidate.runtime, artifact.precision, worker.facts.device, ranked.reason, fingerprint
        )
        self.users = 0
        self.used = self.loaded_at = time.monotonic()
        self.unload: asyncio.TimerHandle | None = None
        self._promised_bytes = worker.memory()[0] + worker.facts.kv_bytes

    @property
    def bytes(self) -> int:
        """That it has, or may take without asking."""
        return max(self.worker.memory()[0], self._promised_bytes, self.worker.expected_bytes)

    def expect(self, bytes: int) -> None:
        """It may take so much more."""
        self.worker.expected_bytes = self.worker.memory()[0] + bytes


class LoadedModels:
    def __init__(
        self,
        config: Config,
        runtimes: Mapping[str, Local],
        decisions: Decisions,
        loader: Loader,
        progress: ProgressTracker,
        threads: Threads,
        requests: Callable[[str], int],
        interactive: Callable[[str], int],
        load_ended: Callable[[], None],
    ) -> None:
        """`requests`: how many a model has under way or waiting, `interactive`: of them those that are no batch's;
        `load_ended` is called after each load."""
        self._config, self._runtimes, self._decisions, self._loader = config, runtimes, decisions, loader
        self._progress, self._threads = progress, threads
        self._requests, self._load_ended = requests, load_ended
        self._loads: dict[Key, asyncio.Task[LoadedModel]] = {}
        self._keep_alive: dict[str, float | None] = {}  # seconds, as clients asked, until the model is unloaded
        self._closing: dict[Worker, asyncio.Task[None]] = {}
        self.memory = Memory(config, self._holders, self._closing_bytes, requests, interactive, self._make_leave)
        self._outdated = itertools.count()
        self._gone = set[str]()  # no longer in the config
        self._died = set[Key]()  # and were not loaded again yet
        self._draining = False
        self.counts: Counter[tuple[str, str]] = Counter()  # of what happened, by kind and model

    # --- leases ---

    async def lease(
        self, name: str, needs: Needs, tried: dict[str, str], instead: Instead | None = None
    ) -> LoadedModel:
        """The best candidate that can be had, loaded, or what `instead` names; those that could not are noted in
        `tried`."""
        while True:
            model = self._config.models[name]
            decision = (await self._decisions.of(name)).decision
            ranked = routing.pick(decision, needs, tried, self._config.routing.strict)
            if ranked is None:
                reason = routing.why_none(decision, model, self._runtimes, tried)
                raise Unavailable(f"model '{name}': {reason}", "model_load_failed")
            if routing.lacking(decision.ranked[0], needs):
                self.counts["detours", name] += 1
            if instead and (other := await instead(decision, ranked)):
                ranked = other
            try:
                loaded = await self._loaded(name, ranked, ranked not in decision.ranked)
                if loaded and self.memory.yields(loaded):
                    await self.memory.next_change()
                elif loaded:
                    return loaded
            except Unavailable as error:
                tried[ranked.candidate.key] = error.message
                if error.retry_after:
                    raise

    async def has_alternative(self, name: str, needs: Needs, tried: dict[str, str], loaded: LoadedModel) -> bool:
        """Whether a candidate is left beside this one."""
        without = {**tried, loaded.candidate.key: ""}
        decision = (await self._decisions.of(name)).decision
        return any(
            ranked.candidate.key not in without and routing.lacking(ranked, needs) is None for ranked in decision.ranked
        )

    @contextmanager
    def using(self, loaded: LoadedModel) -> Iterator[None]:
        loaded.users += 1
        try:
            yield
        finally:
            loaded.users -= 1
            loaded.used = time.monotonic()
            if loaded.retired and not loaded.users:
                self._drop(loaded.key, loaded)
            self.memory.changed()

    async def record_death(self, name: str, loaded: LoadedModel, death: WorkerDied) -> None:
        """Notes a death once, however many requests saw it."""
        if self._drop(loaded.key, loaded):
            self.counts["deaths", name] += 1
            self._died.add(loaded.key)
            await self._decisions.record_failure(loaded.source, loaded.candidate, "death", str(death))

    async def retire(self, name: str, but: LoadedModel | None) -> None:
        """Sends no further request to a model's workers but one, and waits until they have ended."""
        closing: list[Coroutine[Any, Any, None]] = []
        gone: list[str] = []
        for key, loaded in self._all():
            if key[0] == name and loaded is not but:
                loaded.retired = True
                closing.append(loaded.worker.closed())
                if not loaded.users:
                    self._drop(key, loaded)
                if loaded.stands_in:
                    gone.append(loaded.artifact.key)
        await asyncio.gather(*closing)
        for artifact in gone:
            await self._threads.run(name, self._loader.remove, artifact)

    # --- loads ---

    async def _loaded(self, name: str, ranked: Ranked, stands_in: bool) -> LoadedModel | None:
        """Loads it if need be; all who wait for it wait for the same load. None: it was given up for a new config."""
        key = (name, ranked.candidate.key)
        while True:
            load = self._loads.get(key)
            if load is None:
                load = self._loads[key] = asyncio.create_task(self._load(name, ranked, stands_in))
                load.add_done_callback(functools.partial(self._end_load, key))
            try:
                loaded = await asyncio.shield(load)  # a client that leaves does not end a load others may want
            except asyncio.CancelledError:
                if leaving() or self._draining:
                    raise
                return None
            if not loaded.worker.death:
                return loaded
            self._drop(key, loaded)

    async def _load(self, name: str, ranked: Ranked, stands_in: bool) -> LoadedModel:
        began = time.monotonic()
        key, source = (name, ranked.candidate.key), (await self._decisions.of(name)).source
        self._progress.expect(
            key, await self._threads.run(name, self._loader.estimate, source, ranked.candidate, not stands_in)
        )
        artifact = await self._loader.prepare(name, source, ranked.candidate, gate=not stands_in)
        after = (await self._decisions.of(name)).decision.ranked  # what the build has shown of it counts in
        ranked = next((other for other in after if other.candidate == ranked.candidate), ranked)
        await self.make_room(key, name, source, ranked, artifact)
        there = time.monotonic()
        try:
            worker = await self._start(key, source, ranked.candidate, artifact, not stands_in)
        except NoMemory as error:  # the estimate was too low
            if error.needed > self.memory.budget:
                await self._decisions.record_failure(source, ranked.candidate, "load", error.message)
                raise
            self.memory.release(key)
            await self.memory.reserve(key, error.needed, error.needed)
            worker = await self._start(key, source, ranked.candidate, artifact, not stands_in)
        LOAD_SECONDS.labels(name, ranked.candidate.runtime).observe(time.monotonic() - there)
        self.counts["loads", name] += 1
        self.counts["restarts", name] += key in self._died
        self._died.discard(key)
        log.info("loaded '%s' in %.2f s: %s", name, time.monotonic() - began, ranked.candidate.key)
        fingerprint = await self._fingerprint(name, ranked.candidate, artifact, source)
        loaded = LoadedModel(worker, ranked, artifact, source, fingerprint, stands_in)
        worker.grow = functools.partial(self.memory.grant, loaded)
        return loaded

    async def _start(self, key: Key, source: Source, candidate: Candidate, artifact: Artifact, gate: bool) -> Worker:
        return await self._loader.start(key[0], source, candidate, artifact, self.memory.fits(key), gate)

    async def _fingerprint(self, name: str, candidate: Candidate, artifact: Artifact, source: Source) -> str:
        """Of all that decides, with a seed, what a model says."""
        runtime, versions = self._runtimes[candidate.runtime], (await self._decisions.host()).versions
        options = self._config.models[name].options.get(runtime.name)
        installed = [(package, versions.get(package)) for package in runtime.distributions]
        identity = [source.fingerprint, candidate.key, artifact.precision, options, installed]
        return f"fp_{hashlib.blake2b(msgspec.json.encode(identity), digest_size=6).hexdigest()}"

    def _end_load(self, key: Key, load: asyncio.Task[LoadedModel]) -> None:
        name = key[0]
        self.memory.release(key)
        self._progress.forget(key)
        if load.cancelled() or load.exception():
            del self._loads[key]
            self.counts["load_failures", name] += not load.cancelled()
            if not self.has(name):
                self._keep_alive.pop(name, None)
            log.warning("'%s' on %s: %s", *key, "given up" if load.cancelled() else load.exception())
        self.schedule_unload(name)  # whoever asked for it may have left
        self.memory.settle()
        self._load_ended()

    def schedule_unload(self, name: str) -> None:
        """Unloads what nobody has wanted for its keep_alive; a request puts that off until it has ended."""
        loop, idle_seconds = asyncio.get_running_loop(), self.keep_alive(name)
        for key, loaded in self._all():
            if key[0] == name:
                if loaded.unload:
                    loaded.unload.cancel()
                if not self._requests(name) and idle_seconds is not None and not self._draining:
                    loaded.unload = loop.call_later(idle_seconds, self._unload, key, loaded, context=Context())

    def keep_alive(self, name: str) -> float | None:
        """Seconds that a model stays when nobody asks; None: for ever."""
        return self._keep_alive.get(name, seconds(self._config.models[name].keep_alive))

    def set_keep_alive(self, name: str, idle_seconds: float | None) -> None:
        """In the place of the config's, from the end of the next request until the model is unloaded."""
        self._keep_alive[name] = idle_seconds

    # --- another config ---

    def reconfigure(self, config: Config, changed: Collection[str], gone: Collection[str]) -> None:
        """What is loaded of changed models answers until the new one can; what is being loaded of them is given up, and
        who waits for it waits for that."""
        self._config = config
        self.memory.reconfigure(config)
        for (name, _), load in list(self._loads.items()):
            if not load.done() and (name in changed or (name in gone and not self._requests(name))):
                load.cancel()
        for (name, candidate), loaded in self._all():
            if name in changed and not loaded.outdated:
                loaded.outdated, loaded.key = True, (name, f"{candidate}, outdated {next(self._outdated)}")
                self._loads[loaded.key] = self._loads.pop((name, candidate))
        for name in self._gone.difference(gone):
            self._keep_alive.pop(name, None)
        self._gone = set(gone)
        for name in config.models:
            if name in gone:
                self.unload(name)
            else:
                self.schedule_unload(name)

    def outdated(self, name: str, needs: Needs) -> LoadedModel | None:
        """What was loaded by an earlier config and can answer still."""
        return next(
            (
                loaded
                for loaded in self.of(name)
                if loaded.outdated
                and not (loaded.retired or loaded.worker.death or routing.lacking(loaded.ranked, needs))
            ),
            None,
        )

    def unload(self, name: str) -> None:
        """As soon as nobody asks."""
        if self.has(name):
            self._keep_alive[name] = 0.0
            self.schedule_unload(name)

    def _unload(self, key: Key, loaded: LoadedModel) -> None:
        if not loaded.users and not self._requests(key[0]):
            self._drop(key, loaded)

    def _drop(self, key: Key, loaded: LoadedModel) -> bool:
        """Ends a worker unless that was done already."""
        if (key, loaded) not in self._all():
            return False
        log.info("unloading '%s'", key[0])
        self.counts["unloads", key[0]] += 1
        del self._loads[key]
        if not self.has(key[0]):
            self._decisions.forget(key[0])
            self._keep_alive.pop(key[0], None)
        peak = max(loaded.worker.memory()[1], loaded.bytes)
        learn = self._loader.record_memory(key[0], loaded.source, loaded.candidate, peak)
        self.close(loaded.worker, learn)
        return True

    async def make_room(
        self, key: Key, name: str, source: Source, ranked: Ranked, artifact: Artifact, evict: bool = True
    ) -> None:
        """Sets memory aside for a load until `memory.release`; see `Memory.reserve`."""
        needed = await self._loader.memory_bytes(name, source, ranked, artifact)
        await self.memory.reserve(key, needed, artifact.bytes, evict)

    def _make_leave(self, keys: Collection[Key]) -> "asyncio.Future[list[None]]":
        leaving = [loaded for key, loaded in self._all() if key in keys]
        for loaded in leaving:
            self.counts["evictions", loaded.key[0]] += 1
            self._drop(loaded.key, loaded)
        return asyncio.gather(*(loaded.worker.closed() for loaded in leaving))

    def close(self, worker: Worker, after: Coroutine[Any, Any, None] | None = None) -> None:
        """Ends a worker, and does the rest; `end` waits for both."""
        worker.close()
        self._closing[worker] = asyncio.create_task(self._closed(worker, after))

    async def _closed(self, worker: Worker, after: Coroutine[Any, Any, None] | None) -> None:
        await worker.closed()
        del self._closing[worker]
        self.memory.changed()
        if after:
            await after

    # --- what there is ---

    def _holders(self) -> list[LoadedModel]:
        return [loaded for _, loaded in self._all()]

    def _closing_bytes(self) -> int:
        return sum(worker.memory()[0] for worker in self._closing)

    def _all(self) -> Iterator[tuple[Key, LoadedModel]]:
        """Of loads that ended well."""
        for key, load in list(self._loads.items()):
            if load.done() and not load.cancelled() and not load.exception():
                yield key, load.result()

    def of(self, name: str) -> list[LoadedModel]:
        """A model's workers, the one that serves it first."""
        found = [loaded for (model, _), loaded in self._all() if model == name]
        return sorted(found, key=lambda loaded: (loaded.retired, loaded.outdated, -loaded.used))

    def has(self, name: str) -> bool:
        return any(model == name for model, _ in self._loads)

    def in_memory(self, name: str, candidate: Candidate) -> bool:
        key = (name, candidate.key)
        return any(there == key and not loaded.retired and not loaded.worker.death for there, loaded in self._all())

    def interrupt(self) -> None:
        """Ends what every worker is asked."""
        for _, loaded in self._all():
            loaded.worker.interrupt()

    async def end(self) -> None:
        """Ends every worker and waits until the processes are gone."""
        self._draining = True
        under_way = list(self._loads.values())
        for key, loaded in self._all():
            self._drop(key, loaded)
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        await asyncio.gather(*self._closing.values(), return_exceptions=True)
