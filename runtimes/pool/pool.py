"""Pool: requests, from their model's name to the events of an answer, past the deaths of workers."""

import asyncio
import functools
import logging
import time
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, aclosing, contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from enginehouse.config.schema import Config, bytes_of, seconds
from enginehouse.optimize.artifact import Artifact, Source
from enginehouse.optimize.progress import Progress
from enginehouse.optimize.sources import token_count
from enginehouse.optimize.sources.chat_template import kept_template
from enginehouse.optimize.toolchains import toolchains
from enginehouse.runtimes.contract import (
    USUAL,
    Assigned,
    Chat,
    Delta,
    Event,
    Job,
    Pooling,
    Priority,
    Prompt,
    PromptProgress,
    Sampling,
    Setting,
    Text,
    Waits,
)
from enginehouse.runtimes.engines import runtimes
from enginehouse.runtimes.errors import (
    RETRY_SECONDS,
    Busy,
    Refused,
    TooLong,
    Unavailable,
    UnknownModel,
    WorkerDied,
    shutting_down,
)
from enginehouse.runtimes.metrics import PROMPT_TOKENS, RequestTimes, TokenMeter
from enginehouse.runtimes.pool import host, records, tuning
from enginehouse.runtimes.pool.attribution import without_attribution
from enginehouse.runtimes.pool.benchmark import measure
from enginehouse.runtimes.pool.decisions import Decisions, context_length
from enginehouse.runtimes.pool.explanation import (
    Explanation,
    Loaded,
    Loading,
    OnDisk,
    Stage,
    Status,
    Surroundings,
    Unloaded,
)
from enginehouse.runtimes.pool.idle_benchmark import IdleBenchmark
from enginehouse.runtimes.pool.idle_slots import IdleSlots
from enginehouse.runtimes.pool.loaded_models import LoadedModel, LoadedModels
from enginehouse.runtimes.pool.loader import Loader
from enginehouse.runtimes.pool.preload import Preload
from enginehouse.runtimes.pool.progress import ProgressTracker
from enginehouse.runtimes.pool.records import Records
from enginehouse.runtimes.pool.routing import Decision, Figures, Ranked, told
from enginehouse.runtimes.pool.stand_ins import StandIns
from enginehouse.runtimes.pool.threads import Threads
from enginehouse.runtimes.pool.turns import AHEAD, Places, Turns
from enginehouse.runtimes.pool.upstreams import Upstreams
from enginehouse.runtimes.upstream.replica import Replica
from enginehouse.runtimes.worker import prompt as chat
from enginehouse.runtimes.worker.client import Worker
from enginehouse.runtimes.worker.protocol import Embedded

log = logging.getLogger("enginehouse.pool")
T = TypeVar("T")
BATCH_SHARE = 0.75  # of the queue: a batch leaves places for others
NOT_TO_BE_HAD = "model_load_failed", "no_memory"  # codes of errors
ATTEMPTS = 3  # workers a request may see die: its own, a fresh one, then the next candidate's, or alone on a third


class Pool:
    def __init__(self, config: Config) -> None:
        self.config = config
        self.known = dict(config.models)  # those of earlier configs too: requests may be under way for them
        self._runtimes, makers = runtimes(), toolchains()
        learnt = Records(Path(config.cache_dir).expanduser() / records.FILE)
        self._progress, self._threads = ProgressTracker(), Threads()
        self._decisions = Decisions(config, self._runtimes, makers, learnt, self._threads, self._progress.report)
        self._loader = Loader(
            config, self._runtimes, makers, self._decisions, learnt, self._threads, self._progress.report
        )
        self._requests: Counter[str] = Counter()  # under way or waiting, by model
        self._interactive: Counter[str] = Counter()  # those of them that are no batch's
        self._models = LoadedModels(
            config,
            self._runtimes,
            self._decisions,
            self._loader,
            self._progress,
            self._threads,
            self._requests.__getitem__,
            self._interactive.__getitem__,
            self._load_ended,
        )
        self._stand_ins = StandIns(config, self._decisions, self._loader, self._models, self._progress, self._threads)
        self._idle = IdleBenchmark(self._decisions, self._loader, self.prepare, self.measure)
        self._names = names(config)
        self._turns: dict[tuple[str, Priority], Turns] = {}
        self._places = Places()
        self._upstreams = Upstreams(config, self._models, self._stand_ins)
        self.idle_slots = IdleSlots(self._requests.__getitem__, self._slots)
        self._suspects: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._tokenizers: dict[str, token_count.TokenCounter] = {}  # by source fingerprint
        self._draining = False
        self._preload = Preload(self._answer_once)
        self.counts = self._models.counts  # of what happened, by kind and model; see server/api/metrics.py

    async def probe_host(self) -> None:
        """Finds out about the host while nobody asks yet: the runtimes take a second to say which devices they have."""
        self._upstreams.start()
        await self._decisions.host()

    def preload(self) -> None:
        """Loads what the config wants loaded from the start."""
        self._preload.want([name for name, model in self.config.models.items() if model.preload])

    async def preloaded(self) -> None:
        """Returns when these have answered."""
        await self._preload.ready()

    async def _answer_once(self, name: str) -> None:
        job = Job("preload", name, Text("The"), Sampling(max_tokens=1))
        async with aclosing(self.run(job)) as events:
            async for _ in events:
                pass

    def reconfigure(self, config: Config) -> None:
        """Serves by another config from now on, without dropping a request: one that is under way ends as it began,
        also on a model that is gone."""
        changed = {
            name for name, model in config.models.items() if name in self.known and model.differs(self.known[name])
        }
        gone = self.config.models.keys() - config.models.keys()
        self.config, self._names = config, names(config)
        self.known.update(config.models)
        internal = msgspec.structs.replace(config, models=dict(self.known))
        self._decisions.reconfigure(internal, changed)
        self._loader.reconfigure(internal)
        self._models.reconfigure(internal, changed, self.known.keys() - config.models.keys())
        self._stand_ins.reconfigure(internal, changed, gone)
        self._idle.reconfigure(config.models)
        self._upstreams.reconfigure(internal)
        self._upstreams.start()
        self.idle_slots.look_again()
        self.preload()

    @property
    def _patience(self) -> float | None:
        return seconds(self.config.server.load_timeout)

    @property
    def draining(self) -> bool:
        """Whether it takes no further request."""
        return self._draining

    def refuse(self) -> None:
        """Takes no further request; those that are under way go on."""
        self._draining = True
        self.idle_slots.close()

    def interrupt(self) -> None:
        """Ends what is under way with Unavailable, whatever it waits for. Nothing can be asked any more."""
        self.refuse()
        for turns in self._turns.values():
            turns.interrupt()
        self._stand_ins.interrupt()
        self._models.interrupt()
        self._upstreams.interrupt()

    async def drain(self) -> None:
        """Ends every worker and waits until the processes are gone."""
        self._draining = True
        await asyncio.gather(
            self._preload.end(), self._idle.end(), self._stand_ins.end(), self._models.end(), self._decisions.close()
        )
        await self._upstreams.end()
        self._threads.end()

    # --- requests ---

    def resolve(self, name: str) -> str:
        """The model an id or alias names."""
        try:
            return self._names[name]
        except KeyError:
            have = ", ".join(sorted(self._names))
            raise UnknownModel(f"The model '{name}' does not exist; have: {have}") from None

    async def run(self, job: Job) -> AsyncGenerator[Event, None]:
        """Assigned, then deltas, then Done. Closing it early frees the slot. Enter it with aclosing()."""
        name = self.resolve(job.model)
        job = msgspec.structs.replace(job, prompt=self._stable(job.prompt))
        times = RequestTimes(name)
        try:
            with ExitStack() as request:
                request.enter_context(self._request(name, job.priority, job.owner))
                here = functools.partial(self._answer_here, name, request)
                async with aclosing(self._upstreams.answer(name, job, here)) as events:
                    async for event in events:
                        times.note(event)
                        yield event
        except BaseException as error:
            times.failed(error)
            if isinstance(error, Unavailable) and error.code in NOT_TO_BE_HAD:
                self._preload.doubt(name)
            raise

    async def load(self, model: str, streamed: bool) -> Assigned:
        """Who answers for a model from now on: it is made ready as for a request of that kind."""

        if upstream := self._upstreams.only(self.resolve(model)):
            return upstream.assigned

        async def nothing(worker: Worker) -> None:
            pass

        assigned, _ = await self._ask(model, [], nothing, None if streamed else self._patience)
        return assigned

    def keep_alive(self, model: str, seconds: float | None) -> None:
        """How long it stays loaded after the request that follows, in the place of what the config says; None: for
        ever."""
        self._models.set_keep_alive(self.resolve(model), seconds)

    def unload(self, model: str) -> None:
        """As soon as nobody asks for it."""
        self._models.unload(self.resolve(model))

    async def delete_artifacts(self, model: str) -> dict[str, tuple[int, bool]]:
        """What was built of a model's source: bytes by key, and whether it could be removed, being in no use."""
        name = self.resolve(model)
        source = await self._decisions.source(name)
        return await self._threads.run(name, self._loader.remove_all, source)

    async def embed(self, model: str, texts: list[str | list[int]], pooling: Pooling) -> tuple[Assigned, Embedded]:
        """A vector for each text."""
        name, needs = self.resolve(model), [("embeddings", "model")]
        if upstream := self._upstreams.only(name):
            with self._request(name):
                assigned, embedded = upstream.assigned, await upstream.embed(texts)
        else:
            question = functools.partial(embed, texts, pooling)
            assigned, embedded = await self._ask(model, needs, question, self._patience)
        PROMPT_TOKENS.labels(name, assigned.runtime).inc(embedded.tokens)
        return assigned, embedded

    async def tokenize(self, model: str, prompt: Prompt) -> tuple[Assigned, list[int]]:
        """The token ids of a prompt, rendered as for an answer."""
        stable = self._stable(prompt)
        return await self._ask(model, [], lambda worker: worker.tokenize(stable), self._patience)

    async def detokenize(self, model: str, ids: list[int]) -> tuple[Assigned, str]:
        return await self._ask(model, [], lambda worker: worker.detokenize(ids), self._patience)

    def _stable(self, prompt: Prompt) -> Prompt:
        return without_attribution(prompt) if self.config.server.drop_attribution else prompt

    async def _ask(
        self,
        model: str,
        needs: Collection[tuple[str, str]],
        question: Callable[[Worker], Awaitable[T]],
        patience: float | None,
    ) -> tuple[Assigned, T]:
        """What one worker says to a question that can be put again to the next should it die."""
        name = self.resolve(model)
        if self._upstreams.only(name):
            what = f"'{name}' is served by an upstream, whose tokens are not known here"
            raise Refused(what, "model", "unsupported_parameter")
        with self._request(name):
            tried: dict[str, str] = {}
            for attempt in range(1, ATTEMPTS + 1):
                loaded = await self._stand_ins.lease(name, needs, tried, patience)
                with self._models.using(loaded):
                    try:
                        return loaded.assigned, await question(loaded.worker)
                    except WorkerDied as death:
                        await self._models.record_death(name, loaded, death)
                        if attempt == ATTEMPTS:
                            raise
            raise AssertionError("the last attempt returns or raises")

    async def _answer_here(self, name: str, request: ExitStack, job: Job) -> AsyncGenerator[Event, None]:
        if isinstance(job.prompt, Chat):
            await self._stand_ins.waited(name, self._check_length(name, job.prompt), self._patience_for(job))
        turns = self._turns_of(name, job.priority)
        whole, began = job.request or job.id, time.monotonic()
        await turns.wait(job.owner, whole)
        request.callback(turns.end, whole)
        async with aclosing(self._answer(name, job, request, time.monotonic() - began)) as events:
            async for event in events:
                yield event

    async def _answer(self, name: str, job: Job, request: ExitStack, turn: float) -> AsyncGenerator[Event, None]:
        """Runs the job, which waited `turn` seconds for its turn; when its worker dies, again or on from where it was,
        as far as can be done honestly. The request ends with the engine's work on it, though its client may take long
        to read what came of it."""
        needs = job.needs()
        tried: dict[str, str] = {}
        deaths: list[str] = []  # candidate keys
        generated: list[int] = []
        announced: LoadedModel | None = None  # to the client, as who answers
        begun = False  # the client has seen something of the answer
        while True:
            with ExitStack() as lease:
                # One that has seen two workers die may be what kills them: it runs beside no other of that kind.
                if len(deaths) == ATTEMPTS - 1:
                    await self._suspects[name].acquire()
                    lease.callback(self._suspects[name].release)
                began = time.monotonic()
                loaded = await self._stand_ins.lease(name, needs, tried, self._patience_for(job))
                lease.enter_context(self._models.using(loaded))
                leased, meter = time.monotonic(), TokenMeter(name, loaded.candidate.runtime)
                try:
                    stream = loaded.worker.stream(job, generated, functools.partial(end, lease, request), meter)
                    async with aclosing(stream) as events:
                        async for event in events:
                            if announced is loaded:
                                begun = begun or isinstance(event, Delta)
                                if job.counted and isinstance(event, Delta):
                                    event = msgspec.structs.replace(event, tokens=len(generated))
                                yield event
                                continue
                            assert isinstance(event, PromptProgress)  # it is admitted
                            again = announced is not None and not job.resumable
                            waits = Waits(turn, leased - began, time.monotonic() - leased)
                            yield msgspec.structs.replace(
                                loaded.assigned, again=again, prompt_tokens=event.prompt_tokens, waits=waits
                            )
                            announced = loaded
                    return
                except WorkerDied as death:
                    await self._models.record_death(name, loaded, death)
                    deaths.append(loaded.candidate.key)
                    if len(deaths) == ATTEMPTS or (begun and job.streamed and not job.resumable):
                        raise
                    if not job.resumable:
                        generated.clear()
                    elif begun:
                        job = msgspec.structs.replace(job, echo=False)  # the client has it
                    self.counts["continuations" if generated else "reruns", name] += 1
                    then = f"going on after {len(generated)} tokens" if generated else "running the request again"
                    log.warning("%s; %s", death, then)
            on_this = deaths.count(loaded.candidate.key)
            if on_this == ATTEMPTS - 1 and await self._models.has_alternative(name, needs, tried, loaded):
                tried[loaded.candidate.key] = f"died {on_this} times"

    def _patience_for(self, job: Job) -> float | None:
        """Seconds; without end for a stream, which is told how far it is."""
        return None if job.streamed else self._patience

    def _turns_of(self, name: str, priority: Priority) -> Turns:
        """Of each priority apart: the engine lets the interactive go first only where it has them."""
        if (name, priority) not in self._turns:
            self._turns[name, priority] = Turns(functools.partial(self._ahead, name))
        return self._turns[name, priority]

    def _ahead(self, name: str) -> int:
        loaded = (one.worker.facts.slots for one in self._models.of(name))
        return AHEAD * max(self.known[name].slots, *loaded, 1)

    def _slots(self, name: str) -> int:
        """Of all that answers for a model."""
        return self._upstreams.places(name) if self._upstreams.only(name) else self.known[name].slots

    @contextmanager
    def _request(self, name: str, priority: Priority = "interactive", owner: str = "") -> Iterator[None]:
        if self._draining:
            raise shutting_down()
        queue = self.config.server.max_queue
        slots = self._upstreams.places(name) + self.config.models[name].slots
        limit = slots + (int(BATCH_SHARE * queue) if priority == "batch" else queue)
        if self._requests[name] >= limit:
            raise Busy(f"{self._requests[name]} requests wait for model '{name}' already", "queue_full", RETRY_SECONDS)
        several = len(self.config.server.all_keys) > 1
        if owner and several and self._places.full(name, owner, limit - self._requests[name]):
            mine = "requests with this API key wait for it already as there are places left for others"
            raise Busy(f"model '{name}' is busy: as many {mine}", "queue_full", RETRY_SECONDS)
        interactive = priority == "interactive"
        self._requests[name] += 1
        self._interactive[name] += interactive
        self.counts["requests", name] += 1
        if self._upstreams.only(name) is None:
            self._idle.note_request(name)
        try:
            with self._places.taken(name, owner):
                yield
        finally:
            self._requests[name] -= 1
            self._interactive[name] -= interactive
            self.idle_slots.look_again()
            self._models.schedule_unload(name)
            self._models.memory.settle()
            self._start_idle_timer()
            if not self._requests[name] and not self._models.has(name) and not self._stand_ins.replacing(name):
                self._decisions.forget(name)

    def _load_ended(self) -> None:
        self._tokenizers.clear()  # a hundred MB for a large vocabulary, and the worker counts from here on
        self._start_idle_timer()

    def _start_idle_timer(self) -> None:
        quiet = not self._requests.total() and not self._stand_ins.replacing()
        if quiet and not self._draining and self.config.routing.measure == "idle":
            self._idle.start_timer()

    async def _check_length(self, name: str, prompt: Chat) -> None:
        """Refuses a prompt whose messages alone overflow the context, before a model is loaded for it."""
        if self._models.has(name):
            return
        source = await self._decisions.source(name)
        limit = context_length(self.known[name], source)
        count = await self._threads.run(name, self._count, source, chat.certain_text(prompt.messages), limit)
        if count > limit:
            raise TooLong(limit, count, at_least=True)

    def _count(self, source: Source, text: str, limit: int) -> int:
        """Tokens of the text, 0 where they cannot be told without the engine. Runs in a thread."""
        if len(text.encode()) <= limit:  # no token is less than a byte
            return 0
        tokenizer = self._tokenizers.get(source.fingerprint)
        try:
            tokenizer = tokenizer or token_count.load(Path(source.path))
        except token_count.NoTokenizer as reason:
            log.info("prompts for '%s' are counted only once it is loaded: %s", source.id, reason)
            return 0
        self._tokenizers[source.fingerprint] = tokenizer
        return tokenizer.count(text, limit)

    # --- what is known ---

    def status(self, name: str) -> Status:
        """What is known of a model now, for `GET /v1/models`."""
        if upstream := self._upstreams.only(name):
            return self._upstreams.status(name, upstream, self._requests[name])
        requests, found, better = self._requests[name], self._models.of(name), self._stand_ins.replacing(name)
        now = self._progress.of(name)
        stage, percent, seconds_left = now.stage, round(now.percent), round(now.seconds_left)
        if not found:
            if not better and not self._models.has(name) and not self._decisions.finding(name):
                return Unloaded(requests)
            return Loading(requests, stage, percent, seconds_left)
        first = found[0]
        return Loaded(
            better=Stage(stage, percent, seconds_left) if better else msgspec.UNSET,
            requests=requests,
            runtime=first.assigned.runtime,
            precision=first.assigned.precision,
            device=first.assigned.device,
            context_length=first.worker.facts.context_length,
            kv_bytes_per_token=first.worker.facts.token_bytes,
            slots=first.worker.facts.slots,
            memory_bytes=self.memory(name),
        )

    async def on_disk(self, name: str) -> OnDisk | None:
        """What is known of a model without fetching or making anything for it; None where that is needed."""
        decided = await self._decisions.on_disk(name)
        if decided is None:
            return None
        found, source = self._models.of(name), decided.source
        chosen = next(iter(decided.decision.ranked), None)
        if found:
            facts = found[0].worker.facts
            return OnDisk(source, facts.context_length, chosen, facts.chat_template)
        template = await self._threads.run(name, kept_template, source)
        return OnDisk(source, context_length(self.known[name], source), chosen, template or None)

    def stays(self, name: str) -> float | None:
        """Seconds until a loaded model is unloaded if nobody asks any more; None: it stays."""
        found = self._models.of(name)
        timer = found[0].unload if found else None
        if timer and not timer.cancelled():
            return max(0.0, timer.when() - asyncio.get_running_loop().time())
        return self._models.keep_alive(name)

    def under_way(self, name: str) -> int:
        """Requests that are answered now or wait."""
        return self._requests[name]

    def running(self, name: str) -> int:
        """Of these, at most, those that an engine or an upstream works on."""
        here = sum(min(one.worker.asked, one.worker.facts.slots) for one in self._models.of(name))
        return here + sum(replica.load for model, replica in self.replicas() if model == name)

    def loaded(self) -> Iterator[tuple[str, LoadedModel]]:
        """Every worker that is there, with the name of its model."""
        for name in self.known:
            for one in self._models.of(name):
                yield name, one

    def replicas(self) -> Iterator[tuple[str, Replica]]:
        return self._upstreams.replicas()

    @property
    def memory_budget(self) -> int:
        return bytes_of(self.config.memory_budget, host.total_memory())

    def memory(self, name: str) -> int:
        """Bytes resident in a model's workers."""
        return sum(loaded.worker.memory()[0] for loaded in self._models.of(name))

    def progress(self, name: str) -> Progress:
        """How far a model is on its way to being loaded or measured."""
        return self._progress.of(name)

    def waiting_for(self, name: str, job: str = "") -> str | None:
        """What requests for a model, or one job of that id, wait for, None when they need not."""
        if self._upstreams.only(name):
            return "waiting for the upstream"
        for (model, _), turns in self._turns.items():
            if model == name and (before := turns.before(job)) is not None:
                return f"waiting for a turn, {before} before it"
        if memory := self._models.memory.waiting(name):
            return memory
        served = any(not loaded.retired for loaded in self._models.of(name))
        return None if served else self._progress.describe(name)

    def ready(self) -> str | None:
        """Why nothing can be served, or None."""
        if self._draining:
            return "shutting down"
        if preloading := self._preload.pending():
            return preloading
        reasons = [f"{r.name}: {r.unavailable()}" for r in self._runtimes.values() if r.name != "echo"]
        usable = any(r.unavailable() is None for r in self._runtimes.values() if r.name != "echo")
        return None if usable or self._only_echo() else f"no runtime is usable: {'; '.join(reasons)}"

    def _only_echo(self) -> bool:
        return all(model.source in ("builtin:echo", None) for model in self.config.models.values())

    async def source(self, model: str) -> Source:
        return (await self._decisions.of(self.resolve(model))).source

    async def decision(self, model: str) -> Decision:
        return (await self._decisions.of(self.resolve(model), fresh=True)).decision

    async def explain(self, model: str) -> Explanation:
        """The decision for a model with every number it was made from."""
        name = self.resolve(model)
        return self._upstreams.explained(name, await self._decisions.explain(name))

    async def surroundings(self) -> Surroundings:
        """This machine and its runtimes, whatever the model."""
        return await self._decisions.surroundings()

    # --- apart from requests ---

    async def measure(self, model: str, ranked: Ranked, prompts: Sequence[Prompt] = ()) -> Figures:
        """Times a candidate in a worker of its own, on these prompts if any, and keeps the figures. Nothing is unloaded
        for it."""
        figures = await self._timed(model, ranked, prompts, USUAL)
        await self._decisions.record_measurement(self.resolve(model), ranked.candidate, figures)
        return figures

    async def tune(self, model: str, ranked: Ranked, prompts: Sequence[Prompt] = ()) -> dict[str, Figures]:
        """Times its engine's other settings beside the usual one, and keeps the best. Nothing where it has none."""
        others = self._runtimes[ranked.candidate.runtime].settings
        settings = [one for one in others if one.environment or one.threads * host.cores() >= 1]
        if not settings:
            return {}
        timed = functools.partial(self._timed, model, ranked, prompts)
        objective = self.config.routing.objective
        found = await tuning.timed_in_turn(settings, timed, objective)
        await self._decisions.record_measurement(self.resolve(model), ranked.candidate, tuning.best(found, objective))
        return found

    async def _timed(self, model: str, ranked: Ranked, prompts: Sequence[Prompt], setting: Setting) -> Figures:
        name, key = self.resolve(model), (f"{model} (measured)", ranked.candidate.key)
        source = await self.source(name)
        artifact = await self._loader.prepare(name, source, ranked.candidate)
        await self._models.make_room(key, name, source, ranked, artifact, evict=False)
        try:
            fits = self._models.memory.fits(key)
            worker = await self._loader.start(name, source, ranked.candidate, artifact, fits, setting=setting)
            try:
                self._progress.report(name, ranked.candidate.key, "measure", 0.0)
                figures = await measure(worker, prompts, setting.name)
            finally:
                self._models.close(worker)
        finally:
            self._models.memory.release(key)
            self._progress.forget((name, ranked.candidate.key))
        log.info("measured '%s' on %s%s: %s", name, ranked.candidate.key, told(figures), describe(figures))
        return figures

    async def prepare(self, model: str, ranked: Ranked, anew: bool = False) -> Artifact:
        """What a candidate would load: from the store, or built and kept there."""
        name = self.resolve(model)
        source = await self.source(name)
        estimates = await self._threads.run(name, self._loader.estimate, source, ranked.candidate)
        self._progress.expect((name, ranked.candidate.key), estimates)
        return await self._loader.prepare(name, source, ranked.candidate, anew=anew)


def names(config: Config) -> dict[str, str]:
    """Models by their names and aliases."""
    return {alias: name for name, model in config.models.items() for alias in (name, *model.aliases)}


async def embed(texts: list[str | list[int]], pooling: Pooling, worker: Worker) -> Embedded:
    return await worker.embed(texts, pooling)


def end(*contexts: ExitStack) -> None:
    for context in contexts:
        context.close()


def describe(figures: Figures) -> str:
    return (
        f"prefill {figures.prefill:.0f} tok/s, decode {figures.decode:.1f} alone and {figures.decode_crowd:.1f} in all "
        f"for {figures.slots}, first token {figures.first_token_seconds:.2f} s, load {figures.load_seconds:.1f} s, "
        f"{figures.memory_bytes >> 20} MiB"
    )
