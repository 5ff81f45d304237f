"""What is known of each model on this host: source, candidates, their figures and failures; hence the decision."""

import asyncio
import functools
import logging
import math
import os
import time
from collections.abc import Callable, Collection
from pathlib import Path

import msgspec

from enginehouse.config.schema import DEFAULT_CONTEXT, Config, Model, bytes_of
from enginehouse.optimize import ladder
from enginehouse.optimize.artifact import CannotBuild, Source, Toolchain
from enginehouse.optimize.prepare import adapt, in_16_bits, locate
from enginehouse.optimize.store import Store
from enginehouse.runtimes.contract import USUAL, Local, Setting
from enginehouse.runtimes.errors import Unavailable
from enginehouse.runtimes.pool import host, routing
from enginehouse.runtimes.pool.explanation import (
    ExplainedCandidate,
    ExplainedHost,
    ExplainedRuntime,
    Explanation,
    Surroundings,
)
from enginehouse.runtimes.pool.host import Host
from enginehouse.runtimes.pool.records import Measurement, Records
from enginehouse.runtimes.pool.routing import AS_IS, Candidate, Decision, Figures, Offer
from enginehouse.runtimes.pool.threads import RECORDS, Threads

log = logging.getLogger("enginehouse.routing")
DECISION_SECONDS = 30.0  # a decision is made anew after it, for candidates whose parking has ended


class Decided(msgspec.Struct):
    """A model's source as found for its load, and what was decided for it."""

    source: Source
    decision: Decision
    until: float  # on the monotonic clock


class Decisions:
    def __init__(
        self,
        config: Config,
        runtimes: dict[str, Local],
        toolchains: dict[str, Toolchain],
        records: Records,
        threads: Threads,
        report: Callable[[str, str, str, float], None],
    ) -> None:
        """`report` takes the model, "" for the candidate, the stage of finding its source and the fraction done."""
        self._config, self._runtimes, self._toolchains = config, runtimes, toolchains
        self._records, self._threads, self._report = records, threads, report
        self._cache = Path(config.cache_dir).expanduser()
        self._store = Store(self._cache)
        self._host: asyncio.Task[Host] | None = None
        self._sources: dict[str, asyncio.Task[Source]] = {}
        self._decided_by_model: dict[str, Decided] = {}
        self._deciding: dict[str, asyncio.Task[Decided]] = {}
        self._looks: dict[str, tuple[float, asyncio.Task[Decided]]] = {}  # at what is on the disk, and when

    async def of(self, name: str, fresh: bool = False) -> Decided:
        """What was decided for a model. No await while a decision is young: this is in the way of every request."""
        decided = self._decided_by_model.get(name)
        if decided and not fresh and time.monotonic() < decided.until:
            return decided
        deciding = self._deciding.get(name)
        if deciding is None or fresh:
            deciding = self._deciding[name] = asyncio.create_task(self._decided(name, decided))
            deciding.add_done_callback(lambda done: self._deciding.pop(name, None))
        return await asyncio.shield(deciding)

    async def _decided(self, name: str, decided: Decided | None) -> Decided:
        model = self._config.models[name]
        source = decided.source if decided else await self.source(name)
        machine = await self.host()
        if decided and not await self._threads.run(name, os.path.lexists, source.path or "."):
            decided.until = time.monotonic() + DECISION_SECONDS  # what is loaded goes on without its source
            return decided
        decision = await self._threads.run(name, self._decide, name, source, machine)
        if self._config.models[name] != model:
            return await self._decided(name, None)
        if decided is None or decided.decision != decision:
            log_decision(decision)
        self._decided_by_model[name] = Decided(source, decision, time.monotonic() + DECISION_SECONDS)
        return self._decided_by_model[name]

    async def source(self, name: str) -> Source:
        """Looked for once; kept until `forget`."""
        found = self._sources.get(name)
        if found is None or (found.done() and (found.cancelled() or found.exception())):
            found = self._sources[name] = asyncio.create_task(self._find(name))
        try:
            return await asyncio.shield(found)
        except BaseException:
            if found.cancelled() and self._sources.get(name) is not found and not leaving():
                return await self.source(name)
            if found.done():
                self.forget(name)
            raise

    def reconfigure(self, config: Config, changed: Collection[str]) -> None:
        """Everything is decided anew; the sources of changed models are looked for again."""
        self._config = config
        for name in changed:
            self._decided_by_model.pop(name, None)
            if name in self._looks:
                self._looks[name] = -math.inf, self._looks[name][1]
            if finding := self._sources.pop(name, None):
                finding.cancel()  # who waits for it looks again
        for decided in self._decided_by_model.values():
            decided.until = 0.0

    def finding(self, name: str) -> bool:
        return name in self._sources

    def forget(self, name: str) -> None:
        """The next load looks at the source again: it may have changed. A look that is under way goes on."""
        self._decided_by_model.pop(name, None)
        if (found := self._sources.get(name)) and found.done():
            del self._sources[name]

    async def host(self) -> Host:
        """This machine; found out once, in child processes."""
        if self._host is None:
            self._host = asyncio.create_task(host.discover(self._runtimes))
        return await asyncio.shield(self._host)

    def setting(self, name: str, candidate: Candidate) -> Setting:
        """The one that was found best for it here."""
        decided = self._decided_by_model.get(name)
        ranked = decided.decision.ranked if decided else ()
        found = next((one.figures.setting for one in ranked if one.candidate == candidate and one.figures), "")
        settings = self._runtimes[candidate.runtime].settings
        return next((setting for setting in settings if setting.name == found), USUAL)

    async def record_failure(self, source: Source, candidate: Candidate, kind: str, message: str) -> None:
        """Remembers what a candidate did; the next decision counts it in."""
        machine = await self.host()
        key = candidate.key
        await self._threads.run(
            RECORDS, self._records.failed, source.fingerprint, key, machine.fingerprint, kind, message
        )
        self.expire(source)

    async def record_measurement(self, name: str, candidate: Candidate, figures: Figures) -> None:
        source, machine = (await self.of(name)).source, await self.host()
        slots = self._config.models[name].slots
        await self._threads.run(
            RECORDS,
            self._records.measured,
            source.fingerprint,
            candidate.key,
            slots,
            machine.fingerprint,
            self._artifact_of(source, candidate.key),
            figures,
        )
        self.expire(source)

    def expire(self, source: Source) -> None:
        """The next request decides anew."""
        for decided in self._decided_by_model.values():
            if decided.source.fingerprint == source.fingerprint:
                decided.until = 0.0

    async def surroundings(self) -> Surroundings:
        machine = await self.host()
        budget = bytes_of(self._config.memory_budget, machine.memory_bytes)
        found = [self._runtimes[name] for name in sorted(self._runtimes)]
        return Surroundings(explained(machine), tuple(self._on(machine, runtime) for runtime in found), budget)

    def _on(self, machine: Host, runtime: Local) -> ExplainedRuntime:
        toolchain = self._toolchains.get(runtime.format)
        cannot_build = toolchain.unavailable() if toolchain else f"nothing makes models of format '{runtime.format}'"
        versions = {
            package: machine.versions[package] for package in runtime.distributions if package in machine.versions
        }
        devices = machine.devices.get(runtime.name, ())
        return ExplainedRuntime(runtime.name, runtime.unavailable(), cannot_build, devices, versions)

    async def explain(self, name: str) -> Explanation:
        """The decision for a model with every number it was made from. Fetches and merges nothing for it."""
        machine = await self.host()
        host = explained(machine)
        if name in self._decided_by_model:
            decided = await self.of(name, fresh=True)
            source, decision = decided.source, decided.decision
        else:
            try:
                decided = await self._look(name)
            except Unavailable as error:
                model, objective = self._config.models[name], self._config.routing.objective
                return Explanation(name, model.origin, objective, None, error.message, (), (), host)
            source, decision = decided.source, decided.decision
        at = await self._threads.run(name, self._measurements, name, source, machine)
        keys = [self._artifact_of(source, ranked.candidate.key) for ranked in decision.ranked]
        qualities = await self._threads.run(name, lambda: [self._store.quality(key) for key in keys])
        rows = tuple(
            ExplainedCandidate(
                ranked.candidate,
                ranked.reason,
                ranked.features,
                ranked.figures,
                ranked.candidate.key,
                int(at[ranked.candidate.key].at) if ranked.candidate.key in at else None,
                ranked.figures.cost(decision.objective) if ranked.figures else None,
                quality,
            )
            for ranked, quality in zip(decision.ranked, qualities, strict=True)
        )
        return Explanation(
            name,
            source.id,
            decision.objective,
            rows[0].key if rows else None,
            rows[0].reason if rows else None,
            rows,
            decision.rejected,
            host,
        )

    async def on_disk(self, name: str) -> Decided | None:
        """What was decided for a model, or would be as long as its source stays what it is; None where that must be
        fetched or made first."""
        if name in self._decided_by_model:
            return await self.of(name)
        now = time.monotonic()
        at, look = self._looks.get(name, (0.0, None))
        if look is None or (look.done() and now > at + DECISION_SECONDS):
            look = asyncio.create_task(self._look(name))
            self._looks[name] = now, look
        try:
            return await asyncio.shield(look)
        except Unavailable:
            return None

    async def _look(self, name: str) -> Decided:
        """Fetches and makes nothing; raises Unavailable where that is needed."""
        source = await self._find(name, cached_only=True)
        decision = await self._threads.run(name, self._decide, name, source, await self.host())
        return Decided(source, decision, 0.0)

    async def close(self) -> None:
        looks = (look for _, look in self._looks.values())
        tasks = [*self._deciding.values(), *looks, *self._sources.values(), *([self._host] if self._host else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _find(self, name: str, cached_only: bool = False) -> Source:
        model = self._config.models[name]
        if model.source is None:
            raise Unavailable(f"model '{name}' is served by an upstream: nothing is loaded here", "no_source")
        report = (lambda stage, done: None) if cached_only else functools.partial(self._report, name, "")
        try:
            in_thread = functools.partial(self._threads.run, name)
            source = await locate(model.source, model.revision, report, model.precision, in_thread, cached_only)
            source = await in_16_bits(source, self._cache, report, in_thread, cached_only)
            if model.adapter:
                source = await adapt(source, model.adapter, self._cache, report, in_thread, cached_only)
            return source
        except CannotBuild as error:
            raise Unavailable(f"model '{name}': {error}", "model_load_failed") from error

    def _decide(self, name: str, source: Source, machine: Host) -> Decision:
        """Runs in a thread: looks at files."""
        model, objective = self._config.models[name], self._config.routing.objective
        offers = [self._offer(runtime, source, machine, model.precision) for runtime in self._runtimes.values()]
        figures: dict[str, Figures] = {}
        if self._config.routing.measure != "off":
            figures = {key: found.figures for key, found in self._measurements(name, source, machine).items()}
        parked = self._records.parked(source.fingerprint, machine.fingerprint)
        enforce = self._config.optimize.quality == "enforce"
        return routing.decide(name, model, source, offers, machine.kind, objective, figures, parked, enforce)

    def _measurements(self, name: str, source: Source, machine: Host) -> dict[str, Measurement]:
        """Those of artifacts as today's toolchains would make them; what older ones made says nothing."""
        slots = self._config.models[name].slots
        rows = self._records.measurements(source.fingerprint, slots, machine.fingerprint)
        return {key: row for key, row in rows.items() if row.artifact == self._artifact_of(source, key)}

    def _artifact_of(self, source: Source, key: str) -> str:
        """The key of what a candidate loads, from the candidate's."""
        runtime, _, precision = key.split("/")
        toolchain = self._toolchains.get(self._runtimes[runtime].format) if runtime in self._runtimes else None
        if toolchain is None or precision == AS_IS or toolchain.unavailable():
            return source.fingerprint
        return toolchain.recipe(source, precision).key

    def _wrong(self, toolchain: Toolchain, source: Source) -> str | None:
        """What a trial of the source's kind has shown."""
        if toolchain.proven(source):
            return None
        wrong = self._records.family(ladder.family(toolchain, source))
        return ladder.not_right(toolchain, source, wrong) if wrong else None

    def _offer(self, runtime: Local, source: Source, machine: Host, pinned: str) -> Offer:
        toolchain = self._toolchains.get(runtime.format)
        cannot = (
            toolchain.unavailable() or toolchain.refuses(source) or self._wrong(toolchain, source)
            if toolchain
            else None
        )
        return Offer(
            runtime.name,
            runtime.format,
            runtime.unavailable(),
            toolchain.precisions if toolchain else {},
            tuple(toolchain.ladder) if toolchain else (),
            ladder.failed(toolchain, source, pinned, self._store, self._config.optimize)
            if toolchain and not cannot
            else {},
            cannot,
            runtime.features,
            machine.devices.get(runtime.name, ()),
        )


def explained(machine: Host) -> ExplainedHost:
    return ExplainedHost(**msgspec.structs.asdict(machine), kind=machine.kind, fingerprint=machine.fingerprint)


def leaving() -> bool:
    """Whether the task that asks is being ended, and not only what it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def context_length(model: Model, source: Source) -> int:
    """Tokens that a request may use at most; an engine may find memory for fewer."""
    return model.context or source.context_length or DEFAULT_CONTEXT


def log_decision(decision: Decision) -> None:
    """One line for a decision."""
    if not decision.ranked:
        return
    chosen, *others = decision.ranked
    also = ", ".join(other.candidate.key for other in others) or "nothing else"
    not_these = "; ".join(f"{r.runtime}: {r.reason}" for r in decision.rejected) or "nothing rejected"
    log.info(
        "'%s' runs on %s: %s; after it: %s; %s",
        decision.model,
        chosen.candidate.key,
        chosen.reason,
        also,
        not_these,
    )
