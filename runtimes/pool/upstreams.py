"""Who goes to an upstream: every request for a model that has nothing else, and of the others those that its `overflow`
lets go when the engines here cannot have them."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from functools import partial

import msgspec

from enginehouse.config.schema import Config
from enginehouse.runtimes.contract import Assigned, Delta, Event, Job
from enginehouse.runtimes.errors import EngineFailed, Refused, RefusedElsewhere, Unavailable, shutting_down
from enginehouse.runtimes.pool.explanation import (
    ExplainedCandidate,
    ExplainedReplica,
    ExplainedUpstream,
    Explanation,
    Loaded,
    Status,
    Unloaded,
)
from enginehouse.runtimes.pool.loaded_models import LoadedModels
from enginehouse.runtimes.pool.routing import Candidate
from enginehouse.runtimes.pool.stand_ins import StandIns
from enginehouse.runtimes.upstream.replica import Replica
from enginehouse.runtimes.upstream.upstream import Upstream

log = logging.getLogger("enginehouse.upstream")
Answer = AsyncGenerator[Event, None]
Way = Callable[[Job], Answer]  # that an answer can come


class Upstreams:
    def __init__(self, config: Config, models: LoadedModels, stand_ins: StandIns) -> None:
        self._config, self._models, self._stand_ins = config, models, stand_ins
        self._all: dict[str, Upstream] = {}
        self._old: list[Upstream] = []  # of configs before this one: requests may be under way at them
        self._here: Counter[str] = Counter()  # requests that engines here answer, or will, by model
        self._ending = False
        self.reconfigure(config)

    def reconfigure(self, config: Config) -> None:
        """Those that stay as they are keep what they know."""
        self._config, before, self._all = config, self._all, {}
        for name, model in config.models.items():
            if model.upstream and not model.local_only:
                known = before.get(name)
                same = known is not None and known.config == model.upstream
                self._all[name] = before.pop(name) if same else Upstream(name, model.upstream)
        for gone in before.values():
            gone.rest()
            self._old.append(gone)

    def start(self) -> None:
        """Begins to ask them whether they are there."""
        for upstream in self._all.values():
            upstream.start()

    async def answer(self, name: str, job: Job, here: Way) -> Answer:
        """From whoever it is to come. Enter it with aclosing()."""
        *ways, last = self._ways(name, job, here)
        announced = begun = False
        for way in (*ways, last):
            try:
                async with aclosing(way(job)) as events:
                    async for event in events:
                        if isinstance(event, Assigned):
                            event = msgspec.structs.replace(event, again=event.again or announced)
                            announced = True
                        begun = begun or isinstance(event, Delta)
                        yield event
                return
            except (Refused, Unavailable, EngineFailed) as error:
                if way is last or final(error) or self._ending or (begun and job.streamed):
                    raise
                log.warning("'%s': %s; going elsewhere", name, error)

    def _ways(self, name: str, job: Job, here: Way) -> list[Way]:
        """Engines here and the upstream, in the order in which they are to be tried."""
        upstream, model = self._all.get(name), self._config.models[name]
        if upstream is None:
            return [here]
        if model.runtime == "upstream":
            return [upstream.run]
        engines, elsewhere = partial(self._counted, name, here), partial(self._overflow, name, upstream)
        if not upstream.takes(job):
            return [engines]
        if not any(not loaded.retired for loaded in self._models.of(name)) and model.overflow in ("loading", "busy"):
            self._stand_ins.start_replacing(name)
            return [elsewhere, engines]
        if self._here[name] >= model.slots and model.overflow == "busy":
            return [elsewhere, engines]
        return [engines, elsewhere]

    async def _counted(self, name: str, here: Way, job: Job) -> Answer:
        self._here[name] += 1
        try:
            async with aclosing(here(job)) as events:
                async for event in events:
                    yield event
        finally:
            self._here[name] -= 1

    async def _overflow(self, name: str, upstream: Upstream, job: Job) -> Answer:
        self._models.counts["overflows", name] += 1
        async with aclosing(upstream.run(job)) as events:
            async for event in events:
                yield event

    def interrupt(self) -> None:
        """Ends what every upstream is asked."""
        self._ending = True
        for upstream in (*self._all.values(), *self._old):
            upstream.interrupt(shutting_down())

    async def end(self) -> None:
        self._ending = True
        await asyncio.gather(*(upstream.end() for upstream in (*self._all.values(), *self._old)))

    # --- what is known ---

    def only(self, name: str) -> Upstream | None:
        """A model's upstream, where no engine here serves it."""
        return self._all.get(name) if self._config.models[name].runtime == "upstream" else None

    def places(self, name: str) -> int:
        """Requests that an upstream takes at once."""
        upstream = self._all.get(name)
        return upstream.config.connections * len(upstream.replicas) if upstream else 0

    def replicas(self) -> Iterator[tuple[str, Replica]]:
        """Every server, with the model that it serves."""
        for name, upstream in self._all.items():
            for replica in upstream.replicas:
                yield name, replica

    def status(self, name: str, upstream: Upstream, requests: int) -> Status:
        if not upstream.healthy:
            return Unloaded(requests)
        return Loaded(
            requests=requests,
            runtime="upstream",
            precision=upstream.assigned.precision,
            device=upstream.assigned.device,
            context_length=self._config.models[name].context or upstream.context_length,
            kv_bytes_per_token=0,
            slots=self.places(name),
            memory_bytes=0,
        )

    def explained(self, name: str, explanation: Explanation) -> Explanation:
        """With what is known of its upstream."""
        upstream = self._all.get(name)
        if upstream is None:
            return explanation
        replicas = tuple(ExplainedReplica(one.url, one.load, one.failure) for one in upstream.replicas)
        overflow, model = self._config.models[name].overflow, upstream.config.model
        shown = ExplainedUpstream(model, overflow, upstream.features, replicas)
        explanation = msgspec.structs.replace(explanation, upstream=shown)
        if not self.only(name):
            return explanation
        candidate = Candidate("upstream", "remote", "", model)
        row = ExplainedCandidate(candidate, upstream.reason, upstream.features, None, candidate.key, None, None, None)
        return msgspec.structs.replace(
            explanation, chosen=candidate.key, reason=upstream.reason, candidates=(row,), rejected=()
        )


def final(error: Exception) -> bool:
    """Whether nobody else would take it."""
    return isinstance(error, Refused) and not isinstance(error, RefusedElsewhere)
