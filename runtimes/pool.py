"""Pool: the one owner of loaded models. Executes what routing decides."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

from config.schema import DEFAULT_CONTEXT, Config, Model, seconds
from optimize.prepare import locate, prepare
from optimize.recipe import Artifact, CannotBuild, Source
from optimize.toolchains import toolchains
from runtimes import chat, host, routing, tokens
from runtimes.contract import Busy, Event, Job, Load, Placed, Unavailable, too_long
from runtimes.engines import runtimes
from runtimes.process import Worker, WorkerDied

log = logging.getLogger("enginehouse.pool")
ATTEMPTS = 3  # workers a request may see die before it gives up, as long as it has sent nothing
RETRY_SECONDS = 5


class UnknownModel(Exception):
    """No model or alias of that name; becomes a 404."""


class Loaded:
    """A model in memory."""

    def __init__(self, worker: Worker, placed: Placed) -> None:
        self.worker, self.placed = worker, placed


class Pool:
    def __init__(self, config: Config) -> None:
        self.config = config
        self._cache = Path(config.cache_dir).expanduser()
        self._runtimes, self._toolchains = runtimes(), toolchains()
        self._names = {alias: name for name, model in config.models.items() for alias in (name, *model.aliases)}
        self._sources: dict[str, asyncio.Task[Source]] = {}  # being found, or found for a load to come
        self._loads: dict[str, asyncio.Task[Loaded]] = {}
        self._requests: Counter[str] = Counter()  # under way or waiting, by model
        self._unloads: dict[str, asyncio.TimerHandle] = {}
        self._closing: list[Worker] = []
        self._tokenizers: dict[str, tokens.Tokenizer] = {}  # by source fingerprint
        self._stages: dict[str, tuple[str, float]] = {}
        self._draining = False

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
        self._check_queue(name)
        self._requests[name] += 1
        self._idle(name)
        try:
            await self._check_length(name, job)
            for attempt in range(1, ATTEMPTS + 1):
                loaded = await self._lease(name)
                sent = False
                try:
                    async with aclosing(loaded.worker.stream(job)) as events:
                        async for event in events:
                            if not sent:
                                sent = True
                                yield loaded.placed
                            yield event
                    return
                except WorkerDied as death:
                    if sent or attempt == ATTEMPTS:
                        raise
                    log.warning("%s; running the request again", death)
        finally:
            self._requests[name] -= 1
            self._idle(name)

    def _check_queue(self, name: str) -> None:
        if self._draining:
            raise Unavailable("the server is shutting down")
        limit = self.config.models[name].slots + self.config.server.max_queue
        if self._requests[name] >= limit:
            raise Busy(f"{self._requests[name]} requests wait for model '{name}' already", "queue_full", RETRY_SECONDS)

    async def _check_length(self, name: str, job: Job) -> None:
        """Refuses a prompt whose messages alone overflow the context, before a model is loaded for it."""
        if name in self._loads:
            return
        source = await self._locate(name)
        limit = context_length(self.config.models[name], source)
        count = await asyncio.to_thread(self._count, source, chat.certain_text(job.messages), limit)
        if count > limit:
            self._sources.pop(name, None)
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

    # --- models ---

    def status(self, name: str) -> dict[str, object]:
        """What is known of a model now, for `GET /v1/models`."""
        load = self._loads.get(name)
        requests = self._requests[name]
        if load is None and name not in self._sources:
            return {"state": "unloaded", "requests": requests}
        if load is None or not load.done():
            stage, fraction = self._stages.get(name, ("start", 0.0))
            return {"state": "loading", "requests": requests, "stage": stage, "percent": round(100 * fraction)}
        loaded = load.result()
        facts = loaded.worker.facts
        return {
            "state": "loaded",
            "requests": requests,
            "runtime": loaded.placed.runtime,
            "precision": loaded.placed.precision,
            "device": facts.device,
            "context_length": facts.context_length,
            "slots": facts.slots,
        }

    def ready(self) -> str | None:
        """Why nothing can be served, or None."""
        if self._draining:
            return "shutting down"
        reasons = [f"{r.name}: {r.unavailable()}" for r in self._runtimes.values() if r.name != "echo"]
        usable = any(r.unavailable() is None for r in self._runtimes.values() if r.name != "echo")
        return None if usable or self._only_echo() else f"no runtime is usable: {'; '.join(reasons)}"

    def _only_echo(self) -> bool:
        return all(model.source == "builtin:echo" for model in self.config.models.values())

    async def drain(self) -> None:
        """Ends every worker and waits until the processes are gone."""
        self._draining = True
        under_way = [*self._sources.values(), *self._loads.values()]
        for name, load in list(self._loads.items()):
            if load.done():
                self._drop(name, load.result())
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        await asyncio.gather(*(worker.closed() for worker in self._closing), return_exceptions=True)

    async def _lease(self, name: str) -> Loaded:
        """The loaded model, loading it if need be; all who wait for it wait for the same load."""
        while True:
            load = self._loads.get(name)
            if load is None:
                load = self._loads[name] = asyncio.create_task(self._load(name))
                load.add_done_callback(lambda done: self._end_load(name, done))
            loaded = await asyncio.shield(load)  # a client that leaves does not end a load others may want
            if loaded.worker.death:
                self._drop(name, loaded)
                continue
            return loaded

    def _idle(self, name: str) -> None:
        """Unloads a model that nobody has wanted for its keep_alive; a request puts that off until it has ended."""
        if unload := self._unloads.pop(name, None):
            unload.cancel()
        load, idle_seconds = self._loads.get(name), seconds(self.config.models[name].keep_alive)
        if self._requests[name] or load is None or not load.done() or idle_seconds is None or self._draining:
            return
        loop = asyncio.get_running_loop()
        self._unloads[name] = loop.call_later(idle_seconds, self._drop, name, load.result())

    def _drop(self, name: str, loaded: Loaded) -> None:
        load = self._loads.get(name)
        if load and load.done() and not load.cancelled() and load.result() is loaded:
            log.info("unloading '%s'", name)
            del self._loads[name]
            loaded.worker.close()
            self._closing = [w for w in self._closing if not w.death] + [loaded.worker]

    def _end_load(self, name: str, load: asyncio.Task[Loaded]) -> None:
        self._stages.pop(name, None)
        self._sources.pop(name, None)  # the next load looks again: the source may have changed by then
        self._tokenizers.clear()  # a hundred MB for a large vocabulary, and the worker counts from here on
        if load.cancelled() or load.exception():
            del self._loads[name]
        self._idle(name)  # whoever asked for it may have left

    async def _load(self, name: str) -> Loaded:
        began = time.monotonic()
        model = self.config.models[name]
        source = await self._locate(name)
        candidate = await asyncio.to_thread(self._choose, name, model, source)
        artifact = await self._prepare(name, source, candidate)
        runtime = self._runtimes[candidate.runtime]
        options = model.options.get(runtime.name, {})
        context, free = context_length(model, source), host.free_memory()
        load = Load(runtime.name, artifact.path, context, model.slots, host.cores(), free, options)
        worker = Worker(name)
        await worker.start(load, runtime.environment, lambda fraction: self._report(name, "load", fraction))
        if model.context and model.context > worker.facts.context_length:
            worker.close()
            most = f"more than the {worker.facts.context_length} tokens it was made for"
            raise Unavailable(f"model '{name}': context {model.context} is {most}", "model_load_failed")
        log.info("loaded '%s' in %.2f s: %s", name, time.monotonic() - began, worker.facts.device)
        return Loaded(worker, Placed(runtime.name, artifact.precision))

    async def _locate(self, name: str) -> Source:
        """Found once for the length check and the load that follows it."""
        found = self._sources.get(name)
        if found is None:
            found = self._sources[name] = asyncio.create_task(self._find(name))
            found.add_done_callback(lambda done: self._end_search(name, done))
        return await asyncio.shield(found)

    def _end_search(self, name: str, search: asyncio.Task[Source]) -> None:
        if search.cancelled() or search.exception():
            self._stages.pop(name, None)
            self._sources.pop(name, None)

    async def _find(self, name: str) -> Source:
        model = self.config.models[name]
        try:
            return await locate(model.source, model.revision, lambda stage, done: self._report(name, stage, done))
        except CannotBuild as error:
            raise Unavailable(f"model '{name}': {error}", "model_load_failed") from error

    def _choose(self, name: str, model: Model, source: Source) -> routing.Candidate:
        choice = routing.choose(model, source, [self._offer(runtime, source) for runtime in self._runtimes])
        if choice.candidate is None:
            raise Unavailable(f"model '{name}': {choice.reason}", "model_load_failed")
        candidate = choice.candidate
        log.info("'%s' runs on %s (%s): %s", name, candidate.runtime, candidate.precision or "as it is", choice.reason)
        return candidate

    def _offer(self, name: str, source: Source) -> routing.Offer:
        runtime = self._runtimes[name]
        toolchain = self._toolchains.get(runtime.format)
        if toolchain is None:
            return routing.Offer(name, runtime.format, runtime.unavailable())
        cannot = toolchain.unavailable() or toolchain.refuses(source)
        return routing.Offer(name, runtime.format, runtime.unavailable(), toolchain.precisions, cannot)

    async def _prepare(self, name: str, source: Source, candidate: routing.Candidate) -> Artifact:
        if not candidate.precision:
            return Artifact(source.kind, source.precision or source.kind, source.path, source.bytes)
        toolchain = self._toolchains[candidate.format]
        report = lambda stage, done: self._report(name, stage, done)  # noqa: E731
        try:
            return await prepare(source, toolchain, candidate.precision, self._cache, report)
        except CannotBuild as error:
            raise Unavailable(f"model '{name}': {error}", "model_load_failed") from error

    def _report(self, name: str, stage: str, fraction: float) -> None:
        self._stages[name] = stage, fraction


def context_length(model: Model, source: Source) -> int:
    return model.context or min(source.context_length or DEFAULT_CONTEXT, DEFAULT_CONTEXT)
