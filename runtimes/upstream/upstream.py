"""A model's upstream: which of its replicas answers a request, and what happens when that one does not."""

import asyncio
import hashlib
import logging
import math
import os
from collections import OrderedDict
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import aclosing
from contextvars import Context
from typing import NamedTuple
from urllib.parse import quote

import msgspec

from enginehouse.config.schema import Upstream as Config
from enginehouse.config.schema import seconds
from enginehouse.runtimes.contract import Assigned, Chat, Event, Job
from enginehouse.runtimes.errors import Busy, EngineFailed, Refused, TimedOut, Unavailable
from enginehouse.runtimes.metrics import UPSTREAM_FAILURES
from enginehouse.runtimes.upstream import parsing, request
from enginehouse.runtimes.upstream.answer import Broken, Reading
from enginehouse.runtimes.upstream.parsing import Parsing
from enginehouse.runtimes.upstream.replica import Replica
from enginehouse.runtimes.worker.protocol import Embedded

log = logging.getLogger("enginehouse.upstream")
ATTEMPTS = 3  # replicas that a request may be sent to
CHECK_SECONDS = 10.0  # between two health checks
CHECK_PATIENCE = 5.0  # seconds for the answer to one
REMEMBERED = 4096  # conversations whose replica is known
UNEVEN = 4  # requests that a replica may have more than another, for the KV of the conversation that it has
DIGEST_BYTES = 12


class Listed(msgspec.Struct):
    """A model as an upstream's /v1/models lists it."""

    id: str
    owned_by: str | None = None
    max_model_len: int | None = None  # vLLM's


class ExplainedCandidate(msgspec.Struct):
    features: list[str] = []


class Explained(msgspec.Struct):
    """Another Enginehouse's, of a model."""

    candidates: list[ExplainedCandidate] = []


class Models(msgspec.Struct):
    data: list[Listed] = []


class Prepared(NamedTuple):
    path: str
    body: bytes
    prefixes: list[bytes]  # of the conversation's messages, longest first


class Upstream:
    def __init__(self, name: str, config: Config, environ: Mapping[str, str] = os.environ) -> None:
        self.name, self.config = name, config
        key = environ.get(config.api_key_env) if config.api_key_env else None
        self._key = key
        self._parser = parsing.parser_named(config.parser)
        self.replicas = [Replica(url, config, key) for url in config.base_urls]
        self._checks: asyncio.Task[None] | None = None
        self._checked = asyncio.Event()  # every replica, once
        self.features: tuple[str, ...] = request.OPENAI if config.features is None else config.features
        self.context_length = 0  # tokens; 0: not known
        self._served: OrderedDict[bytes, Replica] = OrderedDict()  # by the digest of a conversation
        self._turns = 0
        for replica in self.replicas:
            UPSTREAM_FAILURES.labels(name, replica.url)

    # --- what is known ---

    @property
    def assigned(self) -> Assigned:
        digest = hashlib.blake2b(self.config.model.encode(), digest_size=6).hexdigest()
        return Assigned("upstream", "unknown", "remote", self.reason, f"fp_{digest}")

    @property
    def reason(self) -> str:
        count, model = len(self.replicas), self.config.model
        who = "an upstream" if count == 1 else f"one of the {count} servers of an upstream"
        return f"served by {who} as '{model}'"

    @property
    def healthy(self) -> bool:
        return any(not replica.resting for replica in self.replicas)

    # --- requests ---

    def takes(self, job: Job) -> bool:
        """Whether it has what the job needs."""
        try:
            self._refuse_for(job)
        except Refused:
            return False
        return True

    def _refuse_for(self, job: Job) -> None:
        needs, parser = request.needs(job), self._parser
        if parser:
            parsing.check(job)
            if not parser.knows_tools:
                needs = [need for need in needs if need[0] != "tools"]
        self.refuse(needs)
        request.check(job)

    async def run(self, job: Job) -> AsyncGenerator[Event, None]:
        """Assigned, then deltas, then Done, as of a worker. Enter it with aclosing()."""
        await self.look()
        self._refuse_for(job)
        prepared = await asyncio.to_thread(self._prepared, job)
        headers = {"x-request-id": request.request_id(job.request_id or job.id), **job.trace_headers}
        tried: list[Replica] = []
        announced = begun = False
        while True:
            replica = self._choose(prepared.prefixes, tried)
            tried.append(replica)
            reading, here = Reading(job, self._names, self._key), False
            parser = Parsing(job, self._parser) if self._parser and isinstance(job.prompt, Chat) else None
            replica.load += 1
            began = asyncio.get_running_loop().time()
            try:
                async with aclosing(replica.stream(prepared.path, prepared.body, headers)) as came:
                    async for data in came:
                        deltas = list(reading.take(data))
                        if parser:
                            deltas = [found for delta in deltas for found in parser.take(delta)]
                        if not here:
                            replica.note_answer()
                            yield msgspec.structs.replace(self.assigned, again=announced)
                            announced = here = True
                        for delta in deltas:
                            begun = True
                            yield delta
                if not reading.finished:
                    raise Broken("the upstream's stream ended in the middle")
                for delta in parser.end() if parser else ():
                    yield delta
                yield parser.done(reading.done()) if parser else reading.done()
                return
            except Refused:
                replica.note_answer()
                raise
            except (Unavailable, EngineFailed) as error:
                self._note(replica, error, began)
                if (begun and job.streamed) or not self._another(error, tried):
                    raise
                log.warning("'%s' at %s: %s; asking another replica", self.name, replica.url, error)
            finally:
                replica.load -= 1

    async def embed(self, texts: list[str | list[int]]) -> Embedded:
        """A vector for each text, pooled as the upstream does it."""
        await self.look()
        self.refuse([("embeddings", "model")])
        fields = {"model": self.config.model, "input": texts, "encoding_format": "float"}
        body = await asyncio.to_thread(msgspec.json.encode, fields)
        tried: list[Replica] = []
        while True:
            replica = self._choose([], tried)
            tried.append(replica)
            replica.load += 1
            began = asyncio.get_running_loop().time()
            try:
                patience = seconds(self.config.first_token_timeout)
                read = await replica.ask("POST", "/embeddings", body, patience)
                found = await asyncio.to_thread(vectors_of, read, len(texts))
                replica.note_answer()
                return found
            except (Unavailable, EngineFailed) as error:
                self._note(replica, error, began)
                if not self._another(error, tried):
                    raise
            finally:
                replica.load -= 1

    def refuse(self, needs: Collection[tuple[str, str]]) -> None:
        """Raises Refused for a feature that the upstream does not have."""
        for feature, field in needs:
            if feature not in self.features:
                raise Refused(
                    f"'{feature}' is not honoured by the upstream that serves '{self.name}'; where it is, name it in "
                    "'upstream.features'",
                    field,
                    "unsupported_parameter",
                )

    def interrupt(self, error: Exception) -> None:
        for replica in self.replicas:
            replica.interrupt(error)

    def rest(self) -> None:
        """No more checks; what is under way goes on."""
        if self._checks:
            self._checks.cancel()

    async def end(self) -> None:
        if self._checks:
            self._checks.cancel()
            await asyncio.gather(self._checks, return_exceptions=True)
        await asyncio.gather(*(replica.end() for replica in self.replicas))

    # --- which replica ---

    @property
    def _names(self) -> tuple[str, ...]:
        return (self.config.model, *([self.config.answers_as] if self.config.answers_as else []))

    def _prepared(self, job: Job) -> Prepared:
        """Runs in a thread: a conversation may be long."""
        digest, prefixes = hashlib.blake2b(digest_size=DIGEST_BYTES), list[bytes]()
        if isinstance(job.prompt, Chat):
            for message in job.prompt.messages:
                digest.update(msgspec.json.encode(message))
                prefixes.append(digest.copy().digest())
        path, body = request.body_of(job, self.config.model, self.features, self._parser)
        return Prepared(path, body, prefixes[::-1])

    def _choose(self, prefixes: Sequence[bytes], tried: Collection[Replica]) -> Replica:
        """The one that has the conversation's KV, unless it has much more to do than another; else the least loaded,
        each in its turn."""
        now = asyncio.get_running_loop().time()
        usable = [one for one in self.replicas if one not in tried and one.usable(now)]
        if not usable:
            after = min(replica.waits(now) for replica in self.replicas)
            failure = next((one.failure for one in self.replicas if one.failure), "all are busy")
            message = f"no server of the upstream can be asked now: {failure}"
            raise Unavailable(message, "upstream_unavailable", max(1, math.ceil(after)))
        least = min(replica.load for replica in usable)
        known = next((self._served[one] for one in prefixes if one in self._served), None)
        if known in usable and known.load <= least + UNEVEN:
            chosen = known
        else:
            idle = [replica for replica in usable if replica.load == least]
            chosen = min(idle, key=lambda replica: replica.turn)
            self._turns += 1
            chosen.turn = self._turns
        if prefixes:
            self._served[prefixes[0]] = chosen
            self._served.move_to_end(prefixes[0])
            if len(self._served) > REMEMBERED:
                self._served.popitem(last=False)
        return chosen

    def _another(self, error: Exception, tried: Collection[Replica]) -> bool:
        """Whether one more may be asked. One that thought until its time was over may be as slow elsewhere."""
        now = asyncio.get_running_loop().time()
        left = any(one.usable(now) for one in self.replicas if one not in tried)
        return left and len(tried) < ATTEMPTS and not isinstance(error, TimedOut) and not self._ending(error)

    def _ending(self, error: Exception) -> bool:
        return isinstance(error, Unavailable) and error.code == "shutting_down"

    def _note(self, replica: Replica, error: Unavailable | EngineFailed, began: float) -> None:
        if not isinstance(error, Busy) and not self._ending(error):
            replica.note_failure(error, began)
            UPSTREAM_FAILURES.labels(self.name, replica.url).inc()
            log.warning("'%s' at %s: %s", self.name, replica.url, error)

    # --- health ---

    def start(self) -> None:
        """From now on every replica is asked what it is, again and again."""
        if self._checks is None:
            self._checks = asyncio.create_task(self._check_for_ever(), context=Context())

    async def look(self) -> None:
        """Waits until every replica was asked once, or had its time to answer."""
        self.start()
        await self._checked.wait()

    async def _check_for_ever(self) -> None:
        while True:
            await asyncio.gather(*map(self._check, self.replicas))
            self._checked.set()
            await asyncio.sleep(CHECK_SECONDS)

    async def _check(self, replica: Replica) -> None:
        try:
            listed = await self._listed(replica)
        except (Unavailable, EngineFailed, Refused) as error:
            if isinstance(error, Unavailable) and not isinstance(error, Busy):
                replica.note_failure(error)
                UPSTREAM_FAILURES.labels(self.name, replica.url).inc()
            log.info("'%s' at %s: %s", self.name, replica.url, error)
            return
        replica.note_reached()
        if listed is None:
            return
        self.context_length = listed.max_model_len or self.context_length
        if self.config.features is None:
            found = await self._features_of(replica, listed)
            if found != self.features:
                log.info("'%s' at %s is of kind '%s': %s", self.name, replica.url, listed.owned_by, ", ".join(found))
            self.features = found

    async def _listed(self, replica: Replica) -> Listed | None:
        body = await replica.ask("GET", "/models", None, CHECK_PATIENCE)
        try:
            models = msgspec.json.decode(body, type=Models).data
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        return next((one for one in models if one.id == self.config.model), None)

    async def _features_of(self, replica: Replica, listed: Listed) -> tuple[str, ...]:
        if listed.owned_by != "enginehouse":
            return request.FAMILIES.get(listed.owned_by or "", request.OPENAI)
        try:
            path = f"/models/{quote(self.config.model, safe='')}/explain"
            explained = msgspec.json.decode(await replica.ask("GET", path, None, CHECK_PATIENCE), type=Explained)
        except (Unavailable, EngineFailed, Refused, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return self.features
        if not explained.candidates:
            return self.features
        theirs = explained.candidates[0].features
        return (*(one for one in theirs if one in request.KNOWN), *request.FURTHER)


class Vector(msgspec.Struct):
    index: int
    embedding: list[float]


class EmbeddingsUsage(msgspec.Struct):
    prompt_tokens: int = 0


class Embeddings(msgspec.Struct):
    data: list[Vector]
    usage: EmbeddingsUsage = msgspec.field(default_factory=EmbeddingsUsage)


def vectors_of(body: bytes, count: int) -> Embedded:
    """Runs in a thread."""
    try:
        reply = msgspec.json.decode(body, type=Embeddings)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Broken(f"the upstream's embeddings are broken: {error}") from None
    by_index = {one.index: one.embedding for one in reply.data}
    if sorted(by_index) != list(range(count)):
        raise Broken(f"the upstream sent {len(by_index)} embeddings for {count} texts")
    return Embedded(0, [by_index[index] for index in range(count)], reply.usage.prompt_tokens)
