"""From a candidate to a worker that answers: the artifact prepared, loaded in a process, and asked a question."""

import asyncio
import functools
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

from config.schema import Config
from optimize.prepare import prepare, recipe_of
from optimize.recipe import Artifact, CannotBuild, Source, Toolchain
from optimize.store import Store
from runtimes import host, smoke
from runtimes.contract import EngineFailed, Load, Local, Unavailable
from runtimes.knowledge import Knowledge, context_length
from runtimes.process import Worker
from runtimes.records import Records
from runtimes.routing import Candidate

log = logging.getLogger("enginehouse.loading")


class Loader:
    """Failures are remembered as the candidate's, unless disk or network are to blame, and raised as Unavailable."""

    def __init__(
        self,
        config: Config,
        runtimes: Mapping[str, Local],
        toolchains: Mapping[str, Toolchain],
        knowledge: Knowledge,
        records: Records,
        report: Callable[[str, str, float], None],
    ) -> None:
        """`report` takes the model, the stage of its loading and the fraction done."""
        self._config, self._runtimes, self._toolchains = config, runtimes, toolchains
        self._knowledge, self._records, self._report = knowledge, records, report
        self._cache = Path(config.cache_dir).expanduser()
        self._store, self._verified = Store(self._cache), set[str]()

    async def prepare(self, name: str, source: Source, candidate: Candidate, anew: bool = False) -> Artifact:
        if not candidate.precision:
            return Artifact(source.kind, source.precision or source.kind, source.path, source.bytes)
        toolchain = self._toolchains[candidate.format]
        report = functools.partial(self._report, name)
        try:
            return await prepare(source, toolchain, candidate.precision, self._cache, report, anew)
        except CannotBuild as error:
            if not error.environment:
                await self._knowledge.failed(source, candidate, "build", str(error))
            raise Unavailable(f"model '{name}': {error}", "model_load_failed") from error

    def building_bytes(self, source: Source, candidate: Candidate) -> int:
        """Memory that preparing this candidate takes at its peak; 0 where nothing is left to be built."""
        if not candidate.precision:
            return 0
        toolchain = self._toolchains[candidate.format]
        recipe = recipe_of(source, toolchain, candidate.precision)
        if self._store.find(recipe.key, toolchain.entry):
            return 0
        return toolchain.memory_bytes(source, candidate.precision)

    async def start(self, name: str, source: Source, candidate: Candidate, artifact: Artifact) -> Worker:
        """A worker of its own with the artifact loaded, which nobody prunes as long as the worker lives."""
        if not artifact.key:
            return await self._start(name, source, candidate, artifact, None)
        try:
            use = await asyncio.to_thread(self._store.use, artifact.key)
        except CannotBuild as error:
            raise Unavailable(f"model '{name}': {error}", "model_load_failed") from error
        with use:
            if artifact.key not in self._verified:
                broken = await asyncio.to_thread(self._store.discard_broken, artifact.key)
                if broken:
                    log.warning("model '%s': %s; it is built anew", name, broken)
                self._verified.add(artifact.key)
            artifact = await self.prepare(name, source, candidate)  # there, or broken, or pruned meanwhile
            return await self._start(name, source, candidate, artifact, use)

    async def _start(
        self, name: str, source: Source, candidate: Candidate, artifact: Artifact, use: IO[bytes] | None
    ) -> Worker:
        runtime, model = self._runtimes[candidate.runtime], self._config.models[name]
        load = Load(
            runtime.name,
            artifact.path,
            context_length(model, source),
            model.slots,
            host.cores(),
            host.free_memory(),
            model.options.get(runtime.name, {}),
            candidate.device,
        )
        worker = Worker(name)
        try:
            await worker.start(load, runtime.environment, lambda fraction: self._report(name, "load", fraction), use)
        except Unavailable as error:
            await self._knowledge.failed(source, candidate, "load", error.message)
            raise
        try:
            if model.context and model.context > worker.facts.context_length:
                most = f"more than the {worker.facts.context_length} tokens it was made for"
                raise Unavailable(f"model '{name}': context {model.context} is {most}", "model_load_failed")
            await self._smoke(source, candidate, worker)
        except BaseException:
            worker.close()
            raise
        return worker

    async def _smoke(self, source: Source, candidate: Candidate, worker: Worker) -> None:
        """Raises Unavailable for an engine that answers nonsense."""
        expected = await asyncio.to_thread(self._records.saying, source.fingerprint)
        try:
            said = await smoke.test(worker, expected)
        except (smoke.Gibberish, EngineFailed) as error:
            await self._knowledge.failed(source, candidate, "smoke", str(error))
            raise Unavailable(f"model '{worker.name}' on {candidate.key}: {error}", "model_load_failed") from error
        if expected is None and said:
            await asyncio.to_thread(self._records.says, source.fingerprint, said)
