"""Pool: the one owner of loaded models. Executes what routing decides."""

import asyncio
import contextlib
import functools
import hashlib
import logging
import time
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Coroutine, Iterator, Mapping
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from config.schema import Config, bytes_of, seconds
from optimize.progress import UNKNOWN, Course, Progress
from optimize.recipe import Artifact, Source
from optimize.toolchains import toolchains
from runtimes import chat, host, records, routing, tokens
from runtimes.contract import (
    Busy,
    Chat,
    Done,
    EngineFailed,
    Event,
    Job,
    Placed,
    Pooling,
    Prompt,
    Unavailable,
    UnknownModel,
    too_long,
)
from runtimes.engines import runtimes
from runtimes.knowledge import Knowledge, context_length
from runtimes.loading import Loader
from runtimes.measure import measure
from runtimes.process import Worker, WorkerDied
from runtimes.records import Records
from runtimes.routing import Candidate, Decision, Figures, Held, Ranked
from runtimes.wire import Embedded

log = logging.getLogger("enginehouse.pool")
T = TypeVar("T")
ATTEMPTS = 3  # workers a request may see die: its own, a fresh one, then the next candidate's, or alone on a third
RETRY_SECONDS = 5
IDLE_SECONDS = 20.0  # without a request, before untried candidates are measured
SETTLED_SECONDS = 600.0  # after nothing better could be built, before that is tried again
OVERHEAD_BYTES = 200 << 20  # of a worker beside its weights, where none was measured


class Loaded:
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
        self.placed = Placed(
            ranked.candidate.runtime, artifact.precision, worker.facts.device, ranked.reason, fingerprint
        )
        self.users = 0
        self.used = time.monotonic()
        self.unload: asyncio.TimerHandle | None = None


Key = tuple[str, str]  # name of the model, key of the candidate


class Pool:
    def __init__(self, config: Config) -> None:
        self.config = config
        self._runtimes, makers = runtimes(), toolchains()
        kept = Records(Path(config.cache_dir).expanduser() / records.FILE)
        self._knowledge = Knowledge(config, self._runtimes, makers, kept, self._report)
        self._loader = Loader(config, self._runtimes, makers, self._knowledge, kept, self._report)
        self._names = {alias: name for name, model in config.models.items() for alias in (name, *model.aliases)}
        self._loads: dict[Key, asyncio.Task[Loaded]] = {}
        self._reserved: dict[Key, int] = {}  # bytes of models on their way into memory
        self._requests: Counter[str] = Counter()  # under way or waiting, by model
        self._suspects: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._closing: list[Worker] = []
        self._tokenizers: dict[str, tokens.Tokenizer] = {}  # by source fingerprint
        self._courses: dict[Key, Course] = {}  # of what is being loaded or measured; the one that moved last at the end
        self._improving: dict[str, asyncio.Task[None]] = {}  # models that a stand-in serves for now
        self._settled: defaultdict[str, float] = defaultdict(float)  # until when nothing better is looked for
        self._patience = seconds(config.server.load_timeout)
        self._asked: set[str] = set()  # models that had a request
        self._measuring: asyncio.Task[None] | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._draining = False
        self.counts: Counter[tuple[str, str]] = Counter()  # of what happened, by kind and model; see server/metrics.py

    async def look_around(self) -> None:
        """Finds out about the host while nobody asks yet: the runtimes take a second to say which devices they have."""
        await self._knowledge.host()

    # --- requests ---

    def resolve(self, name: str) -> str:
        """The model an id or alias names."""
        try:
            return self._names[name]
        except KeyError:
            have = ", ".join(sorted(self._names))
            raise UnknownModel(f"The model '{name}' does not exist; have: {have}") from None

    async def run(self, job: Job) -> AsyncGenerator[Event, None]:
        """Placed, then deltas, then Done. Closing it early frees the slot. Enter it with aclosing()."""
        name = self.resolve(job.model)
        with self._request(name):
            if isinstance(job.prompt, Chat):
                await self._check_length(name, job.prompt)
            async with aclosing(self._answer(name, job)) as events:
                async for event in events:
                    if isinstance(event, Done):
                        self.counts["prompt_tokens", name] += event.usage.prompt_tokens
                        self.counts["completion_tokens", name] += event.usage.completion_tokens
                    yield event

    async def embed(self, model: str, texts: list[str | list[int]], pooling: Pooling) -> tuple[Placed, Embedded]:
        """A vector for each text."""
        return await self._ask(model, [("embeddings", "model")], lambda worker: worker.embed(texts, pooling))

    async def tokenize(self, model: str, prompt: Prompt) -> tuple[Placed, list[int]]:
        """The token ids of a prompt, rendered as for an answer."""
        return await self._ask(model, [], lambda worker: worker.tokenize(prompt))

    async def detokenize(self, model: str, ids: list[int]) -> tuple[Placed, str]:
        return await self._ask(model, [], lambda worker: worker.detokenize(ids))

    async def _ask(
        self, model: str, needs: Collection[tuple[str, str]], question: Callable[[Worker], Awaitable[T]]
    ) -> tuple[Placed, T]:
        """What one worker says to a question that can be put again to the next should it die."""
        name = self.resolve(model)
        with self._request(name):
            tried: dict[str, str] = {}
            for attempt in range(1, ATTEMPTS + 1):
                loaded = await self._waited(name, self._lease(name, needs, tried), self._patience)
                with self._using(loaded):
                    try:
                        return loaded.placed, await question(loaded.worker)
                    except WorkerDied as death:
                        await self._mourn(name, loaded, death)
                        if attempt == ATTEMPTS:
                            raise
            raise AssertionError("the last attempt returns or raises")

    async def _answer(self, name: str, job: Job) -> AsyncGenerator[Event, None]:
        """Runs the job; when its worker dies, again or on from where it was, as far as that can be done honestly."""
        needs = job.needs()
        tried: dict[str, str] = {}
        deaths: list[str] = []  # candidate keys
        said: list[int] = []
        told: Loaded | None = None  # whom the client knows to answer
        while True:
            # One that has seen two workers die may be what kills them: it runs beside no other of that kind.
            suspect = self._suspects[name] if len(deaths) == ATTEMPTS - 1 else contextlib.nullcontext()
            async with suspect:
                patience = None if job.streamed else self._patience  # a stream is told how far it is
                loaded = await self._waited(name, self._lease(name, needs, tried), patience)
                try:
                    with self._using(loaded):
                        async with aclosing(loaded.worker.stream(job, said)) as events:
                            async for event in events:
                                if told is not loaded:
                                    again = told is not None and not job.resumable
                                    yield msgspec.structs.replace(loaded.placed, again=again)
                                    told = loaded
                                yield event
                    return
                except WorkerDied as death:
                    await self._mourn(name, loaded, death)
                    deaths.append(loaded.candidate.key)
                    if len(deaths) == ATTEMPTS or (told and job.streamed and not job.resumable):
                        raise
                    if not job.resumable:
                        said.clear()
                    elif told:
                        job = msgspec.structs.replace(job, echo=False)  # it is said
                    self.counts["continuations" if said else "reruns", name] += 1
                    then = f"going on after {len(said)} tokens" if said else "running the request again"
                    log.warning("%s; %s", death, then)
            on_this = deaths.count(loaded.candidate.key)
            if on_this == ATTEMPTS - 1 and await self._another(name, needs, tried, loaded):
                tried[loaded.candidate.key] = f"died {on_this} times"

    async def _another(
        self, name: str, needs: Collection[tuple[str, str]], tried: dict[str, str], loaded: Loaded
    ) -> bool:
        """Whether a candidate is left beside this one."""
        without = {**tried, loaded.candidate.key: ""}
        decision = (await self._knowledge.of(name)).decision
        return any(
            ranked.candidate.key not in without and routing.lacking(ranked, needs) is None for ranked in decision.ranked
        )

    async def _mourn(self, name: str, loaded: Loaded, death: WorkerDied) -> None:
        """Notes a death once, however many requests saw it."""
        key = (name, loaded.candidate.key)
        if self._drop(key, loaded):
            self.counts["deaths", name] += 1
            await self._knowledge.failed(loaded.source, loaded.candidate, "death", str(death))

    @contextmanager
    def _request(self, name: str) -> Iterator[None]:
        if self._draining:
            raise Unavailable("the server is shutting down")
        limit = self.config.models[name].slots + self.config.server.max_queue
        if self._requests[name] >= limit:
            raise Busy(f"{self._requests[name]} requests wait for model '{name}' already", "queue_full", RETRY_SECONDS)
        self._requests[name] += 1
        self.counts["requests", name] += 1
        self._asked.add(name)
        self._stop_measuring()
        try:
            yield
        finally:
            self._requests[name] -= 1
            self._rest(name)
            if not self._requests[name] and not self._has_loads(name) and name not in self._improving:
                self._knowledge.forget(name)

    @contextmanager
    def _using(self, loaded: Loaded) -> Iterator[None]:
        loaded.users += 1
        try:
            yield
        finally:
            loaded.users -= 1
            loaded.used = time.monotonic()
            if loaded.retired and not loaded.users:
                self._drop((loaded.worker.name, loaded.candidate.key), loaded)

    async def _check_length(self, name: str, prompt: Chat) -> None:
        """Refuses a prompt whose messages alone overflow the context, before a model is loaded for it."""
        if self._has_loads(name):
            return
        source = await self._knowledge.source(name)
        limit = context_length(self.config.models[name], source)
        count = await asyncio.to_thread(self._count, source, chat.certain_text(prompt.messages), limit)
        if count > limit:
            raise too_long(limit, f"at least {count}")

    def _count(self, source: Source, text: str, limit: int) -> int:
        """Tokens of the text, 0 where they cannot be told without the engine. Runs in a thread."""
        if len(text.encode()) <= limit:  # no token is less than a byte
            return 0
        tokenizer = self._tokenizers.get(source.fingerprint)
        try:
            tokenizer = tokenizer or tokens.load(Path(source.path))
        except tokens.NoTokenizer as reason:
            log.info("prompts for '%s' are counted only once it is loaded: %s", source.id, reason)
            return 0
        self._tokenizers[source.fingerprint] = tokenizer
        return tokenizer.count(text, limit)

    # --- what is known ---

    def status(self, name: str) -> dict[str, object]:
        """What is known of a model now, for `GET /v1/models`."""
        requests = self._requests[name]
        tasks = [task for (model, _), task in self._loads.items() if model == name]
        ready = [task.result() for task in tasks if task.done() and not task.cancelled() and not task.exception()]
        if not tasks and name not in self._improving and not self._knowledge.finding(name):
            return {"state": "unloaded", "requests": requests}
        if not ready:
            return {"state": "loading", "requests": requests, **self._under_way(name)}
        first = max(ready, key=lambda loaded: (not loaded.retired, loaded.used))
        better = {"better": self._under_way(name)} if name in self._improving else {}
        return {
            "state": "loaded",
            **better,
            "requests": requests,
            "runtime": first.placed.runtime,
            "precision": first.placed.precision,
            "device": first.placed.device,
            "context_length": first.worker.facts.context_length,
            "slots": first.worker.facts.slots,
            "memory_bytes": self.memory(name),
        }

    def under_way(self, name: str) -> int:
        """Requests that are answered now or wait."""
        return self._requests[name]

    def memory(self, name: str) -> int:
        """Bytes resident in a model's workers."""
        loads = [load for (model, _), load in self._loads.items() if model == name and load.done()]
        return sum(load.result().worker.memory()[0] for load in loads if not load.cancelled() and not load.exception())

    def ready(self) -> str | None:
        """Why nothing can be served, or None."""
        if self._draining:
            return "shutting down"
        reasons = [f"{r.name}: {r.unavailable()}" for r in self._runtimes.values() if r.name != "echo"]
        usable = any(r.unavailable() is None for r in self._runtimes.values() if r.name != "echo")
        return None if usable or self._only_echo() else f"no runtime is usable: {'; '.join(reasons)}"

    def _only_echo(self) -> bool:
        return all(model.source == "builtin:echo" for model in self.config.models.values())

    # --- models in memory ---

    async def drain(self) -> None:
        """Ends every worker and waits until the processes are gone."""
        self._draining = True
        self._stop_measuring()
        under_way = [*self._loads.values(), *self._improving.values(), *filter(None, (self._measuring,))]
        for key, load in list(self._loads.items()):
            if load.done():
                self._drop(key, load.result())
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, self._knowledge.close(), return_exceptions=True)
        await asyncio.gather(*(worker.closed() for worker in self._closing), return_exceptions=True)

    async def _waited(self, name: str, lease: Coroutine[Any, Any, Loaded], seconds: float | None) -> Loaded:
        """What a lease brings in that time. A client that leaves or is sent away does not end what it waited for."""
        try:
            async with asyncio.timeout(seconds):
                return await lease
        except asyncio.CancelledError:
            if not self._has_loads(name):
                self._improve(name)
            raise
        except TimeoutError:
            if not self._has_loads(name):
                self._improve(name)
            message = f"model '{name}' is not ready yet: {self.waiting_for(name)}; ask again"
            after = max(1, round(self.progress(name).seconds_left))
            raise Unavailable(message, "model_loading", after) from None

    async def _lease(
        self, name: str, needs: Collection[tuple[str, str]], tried: dict[str, str], may_stand_in: bool = True
    ) -> Loaded:
        """The best candidate that can be had, loaded; those that could not are noted in `tried`."""
        model = self.config.models[name]
        while True:
            decision = (await self._knowledge.of(name)).decision
            ranked = routing.pick(decision, needs, tried, self.config.routing.strict)
            if ranked is None:
                reason = routing.why_none(decision, model, self._runtimes, tried)
                raise Unavailable(f"model '{name}': {reason}", "model_load_failed")
            if routing.lacking(decision.ranked[0], needs):
                self.counts["detours", name] += 1
            if may_stand_in and (other := await self._stand_in(name, decision, ranked, needs, tried)):
                self._improve(name)
                ranked = other
            try:
                return await self._loaded(name, ranked, ranked not in decision.ranked)
            except Unavailable as error:
                tried[ranked.candidate.key] = error.message
                if error.retry_after:
                    raise

    async def _stand_in(
        self,
        name: str,
        decision: Decision,
        best: Ranked,
        needs: Collection[tuple[str, str]],
        tried: Mapping[str, str],
    ) -> Ranked | None:
        """What answers now, while `best` is built; None when that is not worth it."""
        if self._in_memory((name, best.candidate.key)) or self.config.optimize.first_load == "wait":
            return None
        others, unquantized = (
            [r for r in some if r.candidate.key not in (*tried, best.candidate.key) and not routing.lacking(r, needs)]
            for some in (decision.ranked, decision.unquantized)
        )
        loaded = [other for other in (*others, *unquantized) if self._in_memory((name, other.candidate.key))]
        if loaded:
            return loaded[0]
        source = (await self._knowledge.of(name)).source
        return await asyncio.to_thread(self._loader.quickest, source, best.candidate, others, unquantized)

    def _has_loads(self, name: str) -> bool:
        return any(model == name for model, _ in self._loads)

    def _in_memory(self, key: Key) -> bool:
        load = self._loads.get(key)
        if load is None or not load.done() or load.cancelled() or load.exception():
            return False
        return not (load.result().retired or load.result().worker.death)

    def _improve(self, name: str) -> None:
        """Starts to build what should serve a model, in the place of what serves it now."""
        if name not in self._improving and time.monotonic() > self._settled[name] and not self._draining:
            task = self._improving[name] = asyncio.create_task(self._improved(name))
            task.add_done_callback(lambda _: self._improving.pop(name))

    async def _improved(self, name: str) -> None:
        tried: dict[str, str] = {}
        try:
            try:
                loaded = await self._lease(name, (), tried, may_stand_in=False)
            except Unavailable as error:
                if error.code != "no_memory":
                    raise
                await self._retire(name, None)  # not room for both at once: who comes meanwhile waits
                loaded = await self._lease(name, (), tried, may_stand_in=False)
        except (Unavailable, EngineFailed) as error:
            self._settled[name] = time.monotonic() + SETTLED_SECONDS
            log.warning("'%s' goes on with what stands in: %s", name, error)
            return
        log.info("'%s' is served by %s from now on", name, loaded.candidate.key)
        await self._retire(name, loaded)

    async def _retire(self, name: str, but: Loaded | None) -> None:
        """Sends no further request to a model's workers but one, and waits until they have ended."""
        closing: list[Coroutine[Any, Any, None]] = []
        gone: list[str] = []
        for key, load in list(self._loads.items()):
            if key[0] == name and load.done() and load.result() is not but:
                loaded = load.result()
                loaded.retired = True
                closing.append(loaded.worker.closed())
                if not loaded.users:
                    self._drop(key, loaded)
                if loaded.stands_in:
                    gone.append(loaded.artifact.key)
        await asyncio.gather(*closing)
        for artifact in gone:
            await asyncio.to_thread(self._loader.remove, artifact)

    async def _loaded(self, name: str, ranked: Ranked, stands_in: bool) -> Loaded:
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

    def _end_load(self, key: Key, load: asyncio.Task[Loaded]) -> None:
        name = key[0]
        self._reserved.pop(key, None)
        self._courses.pop(key, None)
        self._tokenizers.clear()  # a hundred MB for a large vocabulary, and the worker counts from here on
        if load.cancelled() or load.exception():
            del self._loads[key]
            log.warning("'%s' on %s: %s", *key, "given up" if load.cancelled() else load.exception())
        self._rest(name)  # whoever asked for it may have left

    def _rest(self, name: str) -> None:
        """Unloads what nobody has wanted for its keep_alive; a request puts that off until it has ended."""
        loop, idle_seconds = asyncio.get_running_loop(), seconds(self.config.models[name].keep_alive)
        for key, load in self._loads.items():
            if key[0] == name and load.done():
                loaded = load.result()
                if loaded.unload:
                    loaded.unload.cancel()
                if not self._requests[name] and idle_seconds is not None and not self._draining:
                    loaded.unload = loop.call_later(idle_seconds, self._unload, key, loaded)
        if self._idle:
            self._idle.cancel()
        resting = not self._requests.total() and not self._improving
        if resting and not self._draining and self.config.routing.measure == "idle":
            self._idle = loop.call_later(IDLE_SECONDS, self._start_measuring)

    def _unload(self, key: Key, loaded: Loaded) -> None:
        if not loaded.users and not self._requests[key[0]]:
            self._drop(key, loaded)

    def _drop(self, key: Key, loaded: Loaded) -> bool:
        """Ends a worker unless that was done already."""
        load = self._loads.get(key)
        if not (load and load.done() and not load.cancelled() and load.result() is loaded):
            return False
        log.info("unloading '%s'", key[0])
        self.counts["unloads", key[0]] += 1
        del self._loads[key]
        if not self._has_loads(key[0]):
            self._knowledge.forget(key[0])
        loaded.worker.close()
        self._closing = [w for w in self._closing if not w.death] + [loaded.worker]
        return True

    async def _load(self, name: str, ranked: Ranked, stands_in: bool) -> Loaded:
        began = time.monotonic()
        key, source = (name, ranked.candidate.key), (await self._knowledge.of(name)).source
        await self._expect(name, source, ranked, gate=not stands_in)
        artifact = await self._loader.prepare(name, source, ranked.candidate, gate=not stands_in)
        after = (await self._knowledge.of(name)).decision.ranked  # what the build has shown of it counts in
        ranked = next((other for other in after if other.candidate == ranked.candidate), ranked)
        self._reserved[key] = await self._make_room(name, ranked, artifact)
        worker = await self._loader.start(name, source, ranked.candidate, artifact, gate=not stands_in)
        self.counts["loads", name] += 1
        log.info("loaded '%s' in %.2f s: %s", name, time.monotonic() - began, ranked.candidate.key)
        fingerprint = await self._fingerprint(name, ranked.candidate, artifact, source)
        return Loaded(worker, ranked, artifact, source, fingerprint, stands_in)

    async def _fingerprint(self, name: str, candidate: Candidate, artifact: Artifact, source: Source) -> str:
        """Of all that decides, with a seed, what a model says."""
        runtime, versions = self._runtimes[candidate.runtime], (await self._knowledge.host()).versions
        options = self.config.models[name].options.get(runtime.name)
        own = [(package, versions.get(package)) for package in runtime.distributions]
        told = [source.fingerprint, candidate.key, artifact.precision, options, own]
        return f"fp_{hashlib.blake2b(msgspec.json.encode(told), digest_size=6).hexdigest()}"

    async def _make_room(self, name: str, ranked: Ranked, artifact: Artifact, evict: bool = True) -> int:
        """Bytes set aside for a model; unloads idle ones for them. Raises Unavailable when they cannot be had."""
        needed = ranked.figures.memory_bytes if ranked.figures else int(1.2 * artifact.bytes) + OVERHEAD_BYTES
        budget = bytes_of(self.config.memory_budget, host.total_memory())
        held = [
            Held(key, load.result().worker.memory()[0], self._busy(key[0], load.result()), load.result().used)
            for key, load in self._loads.items()
            if load.done()
        ]
        gone = routing.evictions(needed, budget - sum(self._reserved.values()), held)
        if gone is None or (gone and not evict):
            if not held and not self._reserved and artifact.bytes < budget:
                return needed  # the estimate may be wrong, and nothing else would be lost
            busy = sum(one.bytes for one in held if one.busy)
            raise Unavailable(
                f"model '{name}' needs about {needed >> 20} MiB; memory_budget is {budget >> 20} MiB, of which "
                f"{busy >> 20} MiB are in use; raise it, or lower 'context' or 'slots'",
                "no_memory",
                RETRY_SECONDS if any(one.busy for one in held) else None,
            )
        closing = []
        for key in gone:
            loaded = self._loads[key].result()
            self._drop(key, loaded)
            closing.append(loaded.worker.closed())
        await asyncio.gather(*closing)
        return needed

    def _busy(self, name: str, loaded: Loaded) -> bool:
        return loaded.users > 0 or self._requests[name] > 0

    def _report(self, name: str, key: str, stage: str, fraction: float) -> None:
        course = self._courses.pop((name, key), None) or Course(UNKNOWN, time.monotonic())
        course.report(stage, fraction, time.monotonic())
        self._courses[name, key] = course

    # --- measuring ---

    async def measure(self, model: str, ranked: Ranked) -> Figures:
        """Times a candidate in a worker of its own and keeps the figures. Nothing is unloaded for it."""
        name = self.resolve(model)
        source = (await self._knowledge.of(name)).source
        artifact = await self._loader.prepare(name, source, ranked.candidate)
        key = (f"{name} (measured)", ranked.candidate.key)
        self._reserved[key] = await self._make_room(name, ranked, artifact, evict=False)
        try:
            worker = await self._loader.start(name, source, ranked.candidate, artifact)
            try:
                self._report(*key, "measure", 0.0)
                figures = await measure(worker)
            finally:
                worker.close()
                self._closing.append(worker)
        finally:
            del self._reserved[key]
            self._courses.pop(key, None)
        await self._knowledge.measured(name, ranked.candidate, figures)
        log.info("measured '%s' on %s: %s", name, ranked.candidate.key, told(figures))
        return figures

    async def prepare(self, model: str, ranked: Ranked, anew: bool = False) -> Artifact:
        """What a candidate would load: from the store, or built and kept there."""
        name = self.resolve(model)
        source = await self.source(name)
        await self._expect(name, source, ranked)
        return await self._loader.prepare(name, source, ranked.candidate, anew=anew)

    async def source(self, model: str) -> Source:
        return (await self._knowledge.of(self.resolve(model))).source

    def progress(self, name: str) -> Progress:
        """How far a model is on its way to being loaded or measured."""
        courses = [course for (model, _), course in self._courses.items() if model == name]
        return courses[-1].at(time.monotonic()) if courses else Progress("start", 0.0, sum(UNKNOWN.values()))

    def _under_way(self, name: str) -> dict[str, object]:
        now = self.progress(name)
        return {"stage": now.stage, "percent": round(now.percent), "seconds_left": round(now.seconds_left)}

    async def _expect(self, name: str, source: Source, ranked: Ranked, gate: bool = True) -> None:
        """What lies before a candidate, the fetching of its source behind it."""
        estimates = await asyncio.to_thread(self._loader.estimate, source, ranked.candidate, gate)
        course = self._courses.pop((name, ""), None) or Course(UNKNOWN, time.monotonic())
        course.expect(estimates, time.monotonic())
        self._courses[name, ranked.candidate.key] = course

    def waiting_for(self, name: str) -> str | None:
        """What requests for a model wait for, None when they need not."""
        if any(self._in_memory(key) for key in self._loads if key[0] == name):
            return None
        now = self.progress(name)
        return f"{now.stage}, {now.percent:.0f} %, about {now.seconds_left:.0f} s left"

    async def decision(self, model: str) -> Decision:
        return (await self._knowledge.of(self.resolve(model), fresh=True)).decision

    async def explain(self, model: str) -> dict[str, object]:
        """The decision for a model with every number it was made from."""
        return await self._knowledge.explain(self.resolve(model))

    def _start_measuring(self) -> None:
        if self._measuring is None or self._measuring.done():
            self._measuring = asyncio.create_task(self._measure_untried())

    def _stop_measuring(self) -> None:
        if self._idle:
            self._idle.cancel()
        if self._measuring:
            self._measuring.cancel()

    async def _measure_untried(self) -> None:
        """Every candidate of the models in use that has no figures yet, where there is more than one to choose from."""
        for name in sorted(self._asked):
            known = await self._knowledge.of(name)
            if len(known.decision.ranked) < 2:
                continue
            for ranked in known.decision.ranked:
                if (
                    ranked.figures is None
                    and self._loader.building_bytes(known.source, ranked.candidate) > host.free_memory()
                ):
                    log.info("'%s' is not measured on %s: building may not fit in memory", name, ranked.candidate.key)
                elif ranked.figures is None:
                    log.info("measuring '%s' on %s while nobody asks", name, ranked.candidate.key)
                    try:
                        await self.measure(name, ranked)
                    except asyncio.CancelledError:
                        log.info("measuring '%s' on %s ends: a request came", name, ranked.candidate.key)
                        raise
                    except (Unavailable, EngineFailed) as error:
                        log.warning("measuring '%s' on %s: %s", name, ranked.candidate.key, error)


def told(figures: Figures) -> str:
    return (
        f"prefill {figures.prefill:.0f} tok/s, decode {figures.decode:.1f} alone and {figures.decode_crowd:.1f} in all "
        f"for {figures.slots}, first token {figures.first_token_seconds:.2f} s, load {figures.load_seconds:.1f} s, "
        f"{figures.memory_bytes >> 20} MiB"
    )
