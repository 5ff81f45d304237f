"""Models in memory: leased to requests, replaced by better ones, unloaded for others or when nobody asks."""

import asyncio
import functools
import hashlib
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec

from enginehouse.config.schema import Config, bytes_of, seconds
from enginehouse.optimize.artifact import Artifact, Source
from enginehouse.runtimes.contract import Assigned, EngineFailed, Local, Unavailable
from enginehouse.runtimes.pool import host, routing
from enginehouse.runtimes.pool.decisions import Decisions
from enginehouse.runtimes.pool.loader import Loader
from enginehouse.runtimes.pool.progress import ProgressTracker
from enginehouse.runtimes.pool.routing import Candidate, Decision, Held, Ranked
from enginehouse.runtimes.worker.client import Worker, WorkerDied

log = logging.getLogger("enginehouse.models")
RETRY_SECONDS = 5
GAVE_UP_SECONDS = 600.0  # after nothing better could be built, before that is tried again
OVERHEAD_BYTES = 200 << 20  # of a worker beside its weights, where none was measured
Needs = Collection[tuple[str, str]]


class LoadedModel:
    """A model in memory."""

    retired = False  # another serves in its place: it ends with the last request it has

    def __init__(
        self,
        worker: Worker,
        ranked: Ranked,
        artifact: Artifact,
        source: Source,
        fingerprint: str,
        stands_in: bool = False,
    ) -> None:
        self.worker, self.candidate, self.source = worker, ranked.candidate, source
        self.artifact, self.stands_in = artifact, stands_in
        self.assigned = Assigned(
            ranked.candidate.runtime, artifact.precision, worker.facts.device, ranked.reason, fingerprint
        )
        self.users = 0
        self.used = time.monotonic()
        self.unload: asyncio.TimerHandle | None = None


Key = tuple[str, str]  # name of the model, key of the candidate


class LoadedModels:
    def __init__(
        self,
        config: Config,
        runtimes: Mapping[str, Local],
        decisions: Decisions,
        loader: Loader,
        progress: ProgressTracker,
        requests: Callable[[str], int],
        loaded: Callable[[], None],
    ) -> None:
        """`requests`: how many a model has under way or waiting; `loaded` is called when a load has ended."""
        self._config, self._runtimes, self._decisions, self._loader = config, runtimes, decisions, loader
        self._progress, self._requests, self._tell = progress, requests, loaded
        self._loads: dict[Key, asyncio.Task[LoadedModel]] = {}
        self._reserved: dict[Key, int] = {}  # bytes of models on their way into memory
        self._closing: list[Worker] = []
        self._building_better: dict[str, asyncio.Task[None]] = {}  # models that a stand-in serves for now
        self._gave_up_until: defaultdict[str, float] = defaultdict(float)  # until when nothing better is looked for
        self._draining = False
        self.counts: Counter[tuple[str, str]] = Counter()  # of what happened, by kind and model

    # --- leases ---

    async def wait_for_lease(
        self, name: str, lease: Coroutine[Any, Any, LoadedModel], seconds: float | None
    ) -> LoadedModel:
        """What a lease brings in that time. A client that leaves or is sent away does not end what it waited for."""
        try:
            async with asyncio.timeout(seconds):
                return await lease
        except asyncio.CancelledError:
            if not self.has(name):
                self._build_better(name)
            raise
        except TimeoutError:
            if not self.has(name):
                self._build_better(name)
            message = f"model '{name}' is not ready yet: {self._progress.told(name)}; ask again"
            after = max(1, round(self._progress.of(name).seconds_left))
            raise Unavailable(message, "model_loading", after) from None

    async def lease(self, name: str, needs: Needs, tried: dict[str, str], may_stand_in: bool = True) -> LoadedModel:
        """The best candidate that can be had, loaded; those that could not are noted in `tried`."""
        model = self._config.models[name]
        while True:
            decision = (await self._decisions.of(name)).decision
            ranked = routing.pick(decision, needs, tried, self._config.routing.strict)
            if ranked is None:
                reason = routing.why_none(decision, model, self._runtimes, tried)
                raise Unavailable(f"model '{name}': {reason}", "model_load_failed")
            if routing.lacking(decision.ranked[0], needs):
                self.counts["detours", name] += 1
            if may_stand_in and (other := await self._stand_in(name, decision, ranked, needs, tried)):
                self._build_better(name)
                ranked = other
            try:
                return await self._loaded(name, ranked, ranked not in decision.ranked)
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
                self._drop((loaded.worker.name, loaded.candidate.key), loaded)

    async def record_death(self, name: str, loaded: LoadedModel, death: WorkerDied) -> None:
        """Notes a death once, however many requests saw it."""
        key = (name, loaded.candidate.key)
        if self._drop(key, loaded):
            self.counts["deaths", name] += 1
            await self._decisions.failed(loaded.source, loaded.candidate, "death", str(death))

    # --- stand-ins ---

    async def _stand_in(
        self,
        name: str,
        decision: Decision,
        best: Ranked,
        needs: Needs,
        tried: Mapping[str, str],
    ) -> Ranked | None:
        """What answers now, while `best` is built; None when that is not worth it."""
        if self._in_memory((name, best.candidate.key)) or self._config.optimize.first_load == "wait":
            return None
        others, unquantized = (
            [r for r in some if r.candidate.key not in (*tried, best.candidate.key) and not routing.lacking(r, needs)]
            for some in (decision.ranked, decision.unquantized)
        )
        loaded = [other for other in (*others, *unquantized) if self._in_memory((name, other.candidate.key))]
        if loaded:
            return loaded[0]
        source = (await self._decisions.of(name)).source
        return await asyncio.to_thread(self._loader.quickest, source, best.candidate, others, unquantized)

    def _build_better(self, name: str) -> None:
        """Starts to build what should serve a model, in the place of what serves it now."""
        if name not in self._building_better and time.monotonic() > self._gave_up_until[name] and not self._draining:
            task = self._building_better[name] = asyncio.create_task(self._replace(name))
            task.add_done_callback(lambda _: self._building_better.pop(name))

    async def _replace(self, name: str) -> None:
        tried: dict[str, str] = {}
        try:
            try:
                loaded = await self.lease(name, (), tried, may_stand_in=False)
            except Unavailable as error:
                if error.code != "no_memory":
                    raise
                await self._retire(name, None)  # not room for both at once: who comes meanwhile waits
                loaded = await self.lease(name, (), tried, may_stand_in=False)
        except (Unavailable, EngineFailed) as error:
            self._gave_up_until[name] = time.monotonic() + GAVE_UP_SECONDS
            log.warning("'%s' goes on with what stands in: %s", name, error)
            return
        log.info("'%s' is served by %s from now on", name, loaded.candidate.key)
        await self._retire(name, loaded)

    async def _retire(self, name: str, but: LoadedModel | None) -> None:
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
            await asyncio.to_thread(self._loader.remove, artifact)

    # --- loads ---

    async def _loaded(self, name: str, ranked: Ranked, stands_in: bool) -> LoadedModel:
        """Loads it if need be; all who wait for it wait for the same load."""
        key = (name, ranked.candidate.key)
        while True:
            load = self._loads.get(key)
            if load is None:
                load = self._loads[key] = asyncio.create_task(self._load(name, ranked, stands_in))
                load.add_done_callback(functools.partial(self._end_load, key))
            loaded = await asyncio.shield(load)  # a client that leaves does not end a load others may want
            if not loaded.worker.death:
                return loaded
            self._drop(key, loaded)

    async def _load(self, name: str, ranked: Ranked, stands_in: bool) -> LoadedModel:
        began = time.monotonic()
        key, source = (name, ranked.candidate.key), (await self._decisions.of(name)).source
        self._progress.expect(
            key, await asyncio.to_thread(self._loader.estimate, source, ranked.candidate, not stands_in)
        )
        artifact = await self._loader.prepare(name, source, ranked.candidate, gate=not stands_in)
        after = (await self._decisions.of(name)).decision.ranked  # what the build has shown of it counts in
        ranked = next((other for other in after if other.candidate == ranked.candidate), ranked)
        await self.make_room(key, ranked, artifact)
        worker = await self._loader.start(name, source, ranked.candidate, artifact, gate=not stands_in)
        self.counts["loads", name] += 1
        log.info("loaded '%s' in %.2f s: %s", name, time.monotonic() - began, ranked.candidate.key)
        fingerprint = await self._fingerprint(name, ranked.candidate, artifact, source)
        return LoadedModel(worker, ranked, artifact, source, fingerprint, stands_in)

    async def _fingerprint(self, name: str, candidate: Candidate, artifact: Artifact, source: Source) -> str:
        """Of all that decides, with a seed, what a model says."""
        runtime, versions = self._runtimes[candidate.runtime], (await self._decisions.host()).versions
        options = self._config.models[name].options.get(runtime.name)
        own = [(package, versions.get(package)) for package in runtime.distributions]
        told = [source.fingerprint, candidate.key, artifact.precision, options, own]
        return f"fp_{hashlib.blake2b(msgspec.json.encode(told), digest_size=6).hexdigest()}"

    def _end_load(self, key: Key, load: asyncio.Task[LoadedModel]) -> None:
        name = key[0]
        self.release(key)
        self._progress.forget(key)
        if load.cancelled() or load.exception():
            del self._loads[key]
            log.warning("'%s' on %s: %s", *key, "given up" if load.cancelled() else load.exception())
        self.rest(name)  # whoever asked for it may have left
        self._tell()

    def rest(self, name: str) -> None:
        """Unloads what nobody has wanted for its keep_alive; a request puts that off until it has ended."""
        loop, idle_seconds = asyncio.get_running_loop(), seconds(self._config.models[name].keep_alive)
        for key, loaded in self._all():
            if key[0] == name:
                if loaded.unload:
                    loaded.unload.cancel()
                if not self._requests(name) and idle_seconds is not None and not self._draining:
                    loaded.unload = loop.call_later(idle_seconds, self._unload, key, loaded)

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
        self.close(loaded.worker)
        return True

    async def make_room(self, key: Key, ranked: Ranked, artifact: Artifact, evict: bool = True) -> None:
        """Sets memory aside until `release`; unloads idle models for it. Raises Unavailable when it cannot be had."""
        needed = ranked.figures.memory_bytes if ranked.figures else int(1.2 * artifact.bytes) + OVERHEAD_BYTES
        budget = bytes_of(self._config.memory_budget, host.total_memory())
        held = [
            Held(there, loaded.worker.memory()[0], loaded.users > 0 or self._requests(there[0]) > 0, loaded.used)
            for there, loaded in self._all()
        ]
        gone = routing.evictions(needed, budget - sum(self._reserved.values()), held)
        # Alone it may try: the estimate may be wrong, and nothing else would be lost.
        alone = not held and not self._reserved and artifact.bytes < budget
        if (gone is None or (gone and not evict)) and not alone:
            busy = sum(one.bytes for one in held if one.busy)
            raise Unavailable(
                f"model '{key[0]}' needs about {needed >> 20} MiB; memory_budget is {budget >> 20} MiB, of which "
                f"{busy >> 20} MiB are in use; raise it, or lower 'context' or 'slots'",
                "no_memory",
                RETRY_SECONDS if any(one.busy for one in held) else None,
            )
        self._reserved[key] = needed
        closing = []
        for other, loaded in self._all():
            if other in (gone or ()):
                self._drop(other, loaded)
                closing.append(loaded.worker.closed())
        await asyncio.gather(*closing)

    def release(self, key: Key) -> None:
        self._reserved.pop(key, None)

    def close(self, worker: Worker) -> None:
        """Ends a worker; `end` waits for it."""
        worker.close()
        self._closing = [one for one in self._closing if not one.death] + [worker]

    # --- what there is ---

    def _all(self) -> Iterator[tuple[Key, LoadedModel]]:
        """Of loads that ended well."""
        for key, load in list(self._loads.items()):
            if load.done() and not load.cancelled() and not load.exception():
                yield key, load.result()

    def of(self, name: str) -> list[LoadedModel]:
        """A model's workers, the one that serves it first."""
        found = [loaded for (model, _), loaded in self._all() if model == name]
        return sorted(found, key=lambda loaded: (loaded.retired, -loaded.used))

    def has(self, name: str) -> bool:
        return any(model == name for model, _ in self._loads)

    def is_building_better(self, name: str | None = None) -> bool:
        """Whether something better is being made for a model, or for any."""
        return name in self._building_better if name else bool(self._building_better)

    def _in_memory(self, key: Key) -> bool:
        return any(there == key and not loaded.retired and not loaded.worker.death for there, loaded in self._all())

    async def end(self) -> None:
        """Ends every worker and waits until the processes are gone."""
        self._draining = True
        under_way = [*self._loads.values(), *self._building_better.values()]
        for key, loaded in self._all():
            self._drop(key, loaded)
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        await asyncio.gather(*(worker.closed() for worker in self._closing), return_exceptions=True)
