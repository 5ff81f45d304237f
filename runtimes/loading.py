"""From a candidate to a worker that answers: the artifact prepared, loaded in a process, and asked a question."""

import asyncio
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from config.schema import Config
from optimize.prepare import prepare
from optimize.recipe import Artifact, CannotBuild, Quality, Source, Toolchain, bits
from optimize.store import Store
from runtimes import host, routing, smoke
from runtimes.contract import EngineFailed, Load, Local, Unavailable
from runtimes.knowledge import Knowledge, context_length
from runtimes.process import Worker
from runtimes.records import Records
from runtimes.routing import Candidate, Ranked

log = logging.getLogger("enginehouse.optimize")
WORTH_SECONDS = 3.0  # of waiting that a stand-in is loaded to spare
BUILD_MEMORY = 3


class Loader:
    """Failures are remembered as the candidate's, unless disk or network are to blame, and raised as Unavailable."""

    def __init__(
        self,
        config: Config,
        runtimes: Mapping[str, Local],
        toolchains: Mapping[str, Toolchain],
        knowledge: Knowledge,
        records: Records,
        report: Callable[[str, str, str, float], None],
    ) -> None:
        """`report` takes model and candidate key, the stage of its loading and the fraction done."""
        self._config, self._runtimes, self._toolchains = config, runtimes, toolchains
        self._knowledge, self._records, self._report = knowledge, records, report
        self._cache = Path(config.cache_dir).expanduser()
        self._store = Store(self._cache)

    async def prepare(self, name: str, source: Source, candidate: Candidate, gate: bool = True) -> Artifact:
        """The artifact a candidate loads, built if need be. `gate`: it must hold against its source."""
        if not candidate.precision:
            return Artifact(source.kind, source.precision or source.kind, source.path, source.bytes)
        toolchain = self._toolchains[candidate.format]
        report = functools.partial(self._report, name, candidate.key)
        try:
            artifact = await prepare(source, toolchain, candidate.precision, self._cache, report, gate)
        except CannotBuild as error:
            if not error.environment:
                await self._knowledge.failed(source, candidate, "build", str(error))
            raise Unavailable(f"model '{name}': {error}", "model_load_failed") from error
        if gate and artifact.quality:
            await self._judge(name, source, candidate, artifact.quality)
        return artifact

    async def _judge(self, name: str, source: Source, candidate: Candidate, quality: Quality) -> None:
        """Raises Unavailable for what is not to serve; the next decision then knows why."""
        rules = self._config.optimize
        below = routing.shortfall(quality, rules.limits(bits(candidate.precision)))
        if not below:
            return
        self._knowledge.age(source)
        if self._config.models[name].precision == "auto":
            recipe = self._toolchains[candidate.format].recipe(source, candidate.precision)
            await asyncio.to_thread(self._store.discard, recipe.key)
        elif rules.quality == "warn":
            log.warning("'%s' is served all the same: %s %s", name, candidate.key, below)
            return
        raise Unavailable(f"model '{name}': {candidate.key} {below}", "model_load_failed")

    def quickest(self, source: Source, best: Candidate, others: Sequence[Ranked]) -> Ranked | None:
        """Of `others`, what could answer while `best` is built; None when waiting for `best` takes little longer, or
        both do not fit into memory. Looks at files: run it in a thread."""
        patience = self._seconds(source, best)
        if patience < WORTH_SECONDS:
            return None
        other = min(others, key=lambda ranked: self._seconds(source, ranked.candidate), default=None)
        if other is None or self._seconds(source, other.candidate) > patience / 2:
            return None
        needed = int(1.2 * source.bytes) + BUILD_MEMORY * source.bytes
        return other if needed < host.free_memory() else None

    def _seconds(self, source: Source, candidate: Candidate) -> float:
        """To make what a candidate loads, about; 0 when it is there."""
        if not candidate.precision:
            return 0.0
        toolchain = self._toolchains[candidate.format]
        if self._store.find(toolchain.recipe(source, candidate.precision).key, toolchain.entry):
            return 0.0
        return expected_seconds(toolchain, source, candidate.precision)

    def remove(self, source: Source, candidate: Candidate) -> None:
        """Of the store, what only stood in for something better."""
        if candidate.precision:
            self._store.remove(self._toolchains[candidate.format].recipe(source, candidate.precision).key)

    async def start(self, name: str, source: Source, candidate: Candidate, artifact: Artifact) -> Worker:
        """A worker of its own with the artifact loaded."""
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
            await worker.start(load, runtime.environment, functools.partial(self._report, name, candidate.key, "load"))
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


def expected_seconds(toolchain: Toolchain, source: Source, precision: str) -> float:
    fixed = {"openvino": 10.0, "onnx": 8.0, "gguf": 0.5, "mlx": 2.0}
    pace = {"openvino": 45.0, "onnx": 14.0, "gguf": 13.0 if bits(precision) < 16 else 2.0, "mlx": 8.0}
    return fixed[toolchain.format] + pace[toolchain.format] * source.bytes / 2**30
