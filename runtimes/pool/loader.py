"""From a candidate to a worker that answers: the artifact prepared, loaded in a process, and asked a question."""

import functools
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

import msgspec

from enginehouse.config.schema import Config, Model, Optimize, bytes_of, seconds
from enginehouse.optimize import ladder
from enginehouse.optimize.artifact import Artifact, CannotBuild, Quality, Source, Toolchain, bytes_in_16_bits
from enginehouse.optimize.prepare import forget_exports, prepare
from enginehouse.optimize.progress import estimate
from enginehouse.optimize.store import KINDS, Store
from enginehouse.runtimes.contract import Load, Local, Setting
from enginehouse.runtimes.errors import EngineFailed, NoMemory, Unavailable
from enginehouse.runtimes.metrics import BUILD_SECONDS, BUILDS
from enginehouse.runtimes.pool import host, smoke_test
from enginehouse.runtimes.pool.decisions import Decisions, context_length
from enginehouse.runtimes.pool.records import Records
from enginehouse.runtimes.pool.routing import Candidate, Ranked
from enginehouse.runtimes.pool.threads import RECORDS, Threads
from enginehouse.runtimes.worker.client import Worker
from enginehouse.runtimes.worker.watchdog import STUCK_SECONDS

WORTH_SECONDS = 3.0  # of waiting that a stand-in is loaded to spare
OVERHEAD_BYTES = 200 << 20  # of a worker beside its weights, where none was measured
LOADED_BYTES = 1.2  # times the weights: what a loaded model takes, with its KV cache
log = logging.getLogger("enginehouse.loading")


class Loader:
    """Failures are remembered as the candidate's, unless disk or network are to blame, and raised as Unavailable."""

    def __init__(
        self,
        config: Config,
        runtimes: Mapping[str, Local],
        toolchains: Mapping[str, Toolchain],
        decisions: Decisions,
        records: Records,
        threads: Threads,
        report: Callable[[str, str, str, float], None],
    ) -> None:
        """`report` takes model and candidate key, the stage of its loading and the fraction done."""
        self._config, self._runtimes, self._toolchains = config, runtimes, toolchains
        self._decisions, self._records, self._threads, self._report = decisions, records, threads, report
        self._cache = Path(config.cache_dir).expanduser()
        self._store, self._verified = Store(self._cache), set[str]()

    def reconfigure(self, config: Config) -> None:
        """For what is built and loaded from now on."""
        self._config = config

    async def prepare(
        self, name: str, source: Source, candidate: Candidate, gate: bool = True, anew: bool = False
    ) -> Artifact:
        """The artifact a candidate loads, built if need be. `gate`: it must hold against its source."""
        if not candidate.precision:
            return Artifact(source.kind, source.precision or source.kind, source.path, source.bytes)
        toolchain = self._toolchains[candidate.format]
        if not await self._threads.run(name, toolchain.proven, source):
            await self._try_family(name, source, candidate, toolchain)
        rules = self._config.optimize if gate else None
        artifact = await self._prepared(name, source, candidate, candidate.precision, rules, anew)
        if gate and artifact.quality:
            await self._judge(name, source, candidate, toolchain, artifact.key, artifact.quality)
        return artifact

    async def _prepared(
        self, name: str, source: Source, candidate: Candidate, precision: str, rules: Optimize | None, anew: bool
    ) -> Artifact:
        """In that precision; what fails is remembered as the candidate's."""
        toolchain = self._toolchains[candidate.format]
        report = functools.partial(self._report, name, candidate.key)
        try:
            timed = functools.partial(note_build, name)
            return await prepare(source, toolchain, precision, self._cache, report, rules, anew, timed)
        except CannotBuild as error:
            BUILDS.labels(name, "failed").inc()
            if not error.environment:
                await self._decisions.record_failure(source, candidate, "build", str(error))
            raise Unavailable(f"model '{name}': {error}", "model_load_failed") from error

    async def _try_family(self, name: str, source: Source, candidate: Candidate, toolchain: Toolchain) -> None:
        """Raises Unavailable where the conversion of such sources is not right. Found out once for all of a kind."""
        family = await self._threads.run(name, ladder.family, toolchain, source)
        wrong = await self._threads.run(RECORDS, self._records.family, family)
        if wrong is None:
            artifact = await self._prepared(name, source, candidate, toolchain.exact, Optimize(), anew=False)
            assert artifact.quality
            wrong = ladder.wrong(artifact.quality, toolchain, source)
            await self._threads.run(RECORDS, self._records.record_family, family, wrong)
            log.info("'%s' as %s: %s", source.architecture, toolchain.format, wrong or "the conversion is right")
            if wrong:
                await self._threads.run(name, self._store.discard, artifact.key)
            self._decisions.expire(source)
        if wrong:
            raise Unavailable(f"model '{name}': {ladder.not_right(toolchain, source, wrong)}", "model_load_failed")

    async def _judge(
        self, name: str, source: Source, candidate: Candidate, toolchain: Toolchain, key: str, quality: Quality
    ) -> None:
        """Raises Unavailable for what is not to serve; the next decision then knows why."""
        rules, climbs = self._config.optimize, self._config.models[name].precision == "auto"
        below = ladder.shortfall(quality, candidate.precision, rules)
        if not (below and climbs) or candidate.precision == toolchain.exact:
            await self._threads.run(name, forget_exports, source, toolchain, candidate.precision, self._cache)
        if not below:
            return
        self._decisions.expire(source)
        if climbs:
            await self._threads.run(name, self._store.discard, key)
        elif rules.quality == "warn":
            log.warning("'%s' is served all the same: %s %s", name, candidate.key, below)
            return
        raise Unavailable(f"model '{name}': {candidate.key} {below}", "model_load_failed")

    def quickest(
        self, source: Source, best: Candidate, others: Sequence[Ranked], unquantized: Sequence[Ranked]
    ) -> Ranked | None:
        """What could answer while `best` is built: one of `others` that is there, or what `unquantized` has soonest.
        None when waiting for `best` takes little longer, or both do not fit into memory. Looks at files: run it in a
        thread."""
        patience = self._seconds(source, best)
        if patience < WORTH_SECONDS:
            return None
        unquantized = [other for other in unquantized if self._is_right(source, other.candidate)]
        there = [other for other in others if not self._left_to_build(source, other.candidate)]
        other = min(
            [*there, *unquantized], key=lambda ranked: self._seconds(source, ranked.candidate, gate=False), default=None
        )
        if other is None or self._seconds(source, other.candidate, gate=False) > patience / 2:
            return None
        needed = int(LOADED_BYTES * bytes_in_16_bits(source)) + self.building_bytes(source, best)
        return other if needed < host.free_memory() else None

    def _is_right(self, source: Source, candidate: Candidate) -> bool:
        """Whether its conversion is known to be."""
        toolchain = self._toolchains.get(candidate.format)
        if toolchain is None or not candidate.precision or toolchain.proven(source):
            return True
        return self._records.family(ladder.family(toolchain, source)) == ""

    def _seconds(self, source: Source, candidate: Candidate, gate: bool = True) -> float:
        return sum(seconds for stage, seconds in self.estimate(source, candidate, gate).items() if stage != "load")

    def estimate(self, source: Source, candidate: Candidate, gate: bool = True) -> dict[str, float]:
        """Seconds by stage until a candidate is loaded."""
        toolchain = self._toolchains.get(candidate.format)
        if toolchain is None:
            return {}
        expected = estimate(toolchain, source, candidate.precision, self._store.manifests())
        if not gate or not self._left_to_build(source, candidate):
            expected.pop("check", None)
        if not self._left_to_build(source, candidate):
            return {"load": expected["load"]}
        return expected

    def remove(self, key: str) -> None:
        """Of the store, what only stood in for something better."""
        if key:
            self._store.remove(key)

    def remove_all(self, source: Source) -> dict[str, tuple[int, bool]]:
        """Of the store, what was built of a source: bytes by key, and whether it is gone. Looks at files."""
        built = [one for one in self._store.manifests() if one.recipe.source_fingerprint == source.fingerprint]
        sizes = {one.key: sum(file.bytes for file in one.files.values()) for one in built}
        return {key: (size, self._store.remove(key)) for key, size in sizes.items()}

    def _left_to_build(self, source: Source, candidate: Candidate) -> bool:
        if not candidate.precision:
            return False
        toolchain = self._toolchains[candidate.format]
        return self._store.find(toolchain.recipe(source, candidate.precision).key, toolchain.entry) is None

    def building_bytes(self, source: Source, candidate: Candidate) -> int:
        """Memory that preparing this candidate takes at its peak; 0 where nothing is left to be built."""
        if not self._left_to_build(source, candidate):
            return 0
        return self._toolchains[candidate.format].memory_bytes(source, candidate.precision)

    async def memory_bytes(self, name: str, source: Source, ranked: Ranked, artifact: Artifact) -> int:
        """That a candidate will take, as far as anything is known: what it took when it was last loaded so, or
        measured, or what its weights say."""
        model, machine = self._config.models[name], await self._decisions.host()
        kept = source.fingerprint, ranked.candidate.key, context_length(model, source), model.slots, machine.fingerprint
        learnt = await self._threads.run(RECORDS, self._records.memory, *kept)
        measured = ranked.figures.memory_bytes if ranked.figures else 0
        return learnt or measured or int(LOADED_BYTES * artifact.bytes) + OVERHEAD_BYTES

    async def record_memory(self, name: str, source: Source, candidate: Candidate, peak: int) -> None:
        model, machine = self._config.models[name], await self._decisions.host()
        kept = source.fingerprint, candidate.key, context_length(model, source), model.slots, machine.fingerprint
        await self._threads.run(RECORDS, self._records.record_memory, *kept, peak)

    async def start(
        self,
        name: str,
        source: Source,
        candidate: Candidate,
        artifact: Artifact,
        fits: int,
        gate: bool = True,
        setting: Setting | None = None,
    ) -> Worker:
        """A worker of its own with the artifact loaded, which nobody prunes as long as the worker lives. `fits`:
        bytes that it may take. Without a `setting`, in the one that was found best."""
        setting = setting or self._decisions.setting(name, candidate)
        if not artifact.key:
            return await self._start(name, source, candidate, artifact, fits, setting, None)
        try:
            use = await self._threads.run(name, self._store.use, artifact.key)
        except CannotBuild as error:
            raise Unavailable(f"model '{name}': {error}", "model_load_failed") from error
        with use:
            if artifact.key not in self._verified:
                broken = await self._threads.run(name, self._store.discard_broken, artifact.key)
                if broken:
                    log.warning("model '%s': %s; it is built anew", name, broken)
                self._verified.add(artifact.key)
            if await self._threads.run(
                name, self._left_to_build, source, candidate
            ):  # it was broken, or pruned meanwhile
                artifact = await self.prepare(name, source, candidate, gate)
            return await self._start(name, source, candidate, artifact, fits, setting, use)

    async def _start(
        self,
        name: str,
        source: Source,
        candidate: Candidate,
        artifact: Artifact,
        fits: int,
        setting: Setting,
        use: IO[bytes] | None,
    ) -> Worker:
        runtime, model = self._runtimes[candidate.runtime], self._config.models[name]
        load = Load(
            runtime.name,
            artifact.path,
            context_length(model, source),
            model.slots,
            max(1, round(setting.threads * host.cores())),
            fits,
            model.options.get(runtime.name, {}),
            candidate.device,
            *self._kv_folder(runtime, artifact.key or source.fingerprint, model),
            fit=model.context is None,
        )
        worker = Worker(name)
        try:
            report = functools.partial(self._report, name, candidate.key, "load")
            environment = {**runtime.environment, **setting.environment}
            timeout = seconds(self._config.server.load_timeout)
            patience = timeout and max(timeout, STUCK_SECONDS)  # None: forever
            await worker.start(load, environment, report, use, patience)
        except Unavailable as error:
            if not error.retry_after and not isinstance(error, NoMemory):  # else it is not the candidate's fault
                await self._decisions.record_failure(source, candidate, "load", error.message)
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

    def _kv_folder(self, runtime: Local, of: str, model: Model) -> tuple[str, int]:
        """Where what this engine has read with an artifact is kept, and how much all of that may be."""
        most = bytes_of(self._config.kv_disk, 0)
        options = msgspec.json.encode(model.options.get(runtime.name, {}), order="deterministic").decode()
        told = "\0".join((runtime.name, *map(str, map(host.version, runtime.distributions)), of, options))
        name = hashlib.blake2b(told.encode(), digest_size=10).hexdigest()
        return str(self._cache / KINDS["kv"] / f"{runtime.name}-{name}") if most else "", most

    async def _smoke(self, source: Source, candidate: Candidate, worker: Worker) -> None:
        """Raises Unavailable for an engine that answers nonsense."""
        expected = await self._threads.run(RECORDS, self._records.smoke_answer, source.fingerprint)
        try:
            answered = await smoke_test.test(worker, expected)
        except (smoke_test.Gibberish, EngineFailed) as error:
            await self._decisions.record_failure(source, candidate, "smoke", str(error))
            raise Unavailable(f"model '{worker.name}' on {candidate.key}: {error}", "model_load_failed") from error
        if expected is None and answered:
            await self._threads.run(RECORDS, self._records.record_smoke_answer, source.fingerprint, answered)


def note_build(name: str, seconds: Mapping[str, float]) -> None:
    BUILDS.labels(name, "done").inc()
    for stage, spent in seconds.items():
        BUILD_SECONDS.labels(name, stage).observe(spent)
