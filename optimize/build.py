"""`python -m enginehouse.optimize.build`: one fetch, merge or conversion in a process of its own."""

import errno
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import msgspec

from enginehouse.config.schema import Limits
from enginehouse.optimize import intermediate
from enginehouse.optimize.artifact import (
    Artifact,
    CannotBuild,
    File,
    Manifest,
    Quality,
    Recipe,
    Report,
    Source,
    Toolchain,
    bytes_in_16_bits,
)
from enginehouse.optimize.child_process import carry_out
from enginehouse.optimize.memory import free_memory
from enginehouse.optimize.quality.gate import judge
from enginehouse.optimize.sources.adapter import Adapter, merge
from enginehouse.optimize.sources.checks import check_weights
from enginehouse.optimize.sources.dequantize import dequantize
from enginehouse.optimize.sources.gguf_checkpoint import folder_of
from enginehouse.optimize.sources.hub import fetch, fetch_adapter
from enginehouse.optimize.sources.resolve import resolve
from enginehouse.optimize.store import Store, bytes_in, check_free, digest
from enginehouse.optimize.toolchains import toolchains

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Fetch(msgspec.Struct, tag="fetch", frozen=True):
    source: str
    revision: str | None
    precision: str = "auto"  # the model's
    cached_only: bool = False  # ask no hub


class FetchAdapter(msgspec.Struct, tag="fetch-adapter", frozen=True):
    adapter: str
    cached_only: bool = False


class Merge(msgspec.Struct, tag="merge", frozen=True):
    base: Source
    adapter: Adapter
    cache: str


class Dequantize(msgspec.Struct, tag="dequantize", frozen=True):
    source: Source
    cache: str


class Build(msgspec.Struct, tag="build", frozen=True):
    source: Source
    recipe: Recipe
    cache: str
    bar: Limits | None = None  # compare the artifact with its source: what it must reach
    anew: bool = False  # though there is one already


class Fetched(msgspec.Struct, tag="fetched", frozen=True):
    path: str
    offline: bool = False  # the hub was out of reach, and this is what its cache had


class Merged(msgspec.Struct, tag="merged", frozen=True):
    path: str


class Dequantized(msgspec.Struct, tag="dequantized", frozen=True):
    path: str


class Built(msgspec.Struct, tag="built", frozen=True):
    artifact: Artifact
    seconds: dict[str, float]  # by stage; empty if another process had built it


Order = Fetch | FetchAdapter | Merge | Dequantize | Build


def work(order: Order, report: Report) -> Fetched | Merged | Dequantized | Built:
    stages = Stages(report)
    try:
        match order:
            case Fetch(source, revision, precision, cached_only):
                return Fetched(*fetch(source, revision, precision, stages.report, cached_only))
            case FetchAdapter(adapter, cached_only):
                return Fetched(*fetch_adapter(adapter, stages.report, cached_only))
            case Merge(base, adapter, cache):
                with intermediate.held(base.path, Path(cache)):
                    return Merged(merge(base, adapter, Path(cache), stages.report))
            case Dequantize(source, cache):
                return Dequantized(dequantize(source, Path(cache), stages.report))
            case Build(source, cache=cache, bar=bar):
                if bar:  # nobody may be waiting for it, and others are served meanwhile
                    os.nice(10)
                with intermediate.held(source.path, Path(cache)):
                    return build(order, stages)
    except OSError as error:
        reason = no_room(order, error) if is_no_room(error) else f"building failed: {error}"
        raise CannotBuild(reason, environment=True) from error
    except MemoryError as error:
        raise CannotBuild("building ran out of memory", environment=True) from error


def build(order: Build, stages: "Stages") -> Built:
    recipe, store = order.recipe, Store(Path(order.cache))
    toolchain = toolchains()[recipe.format]
    store.sweep()
    with store.building(recipe.key) as folder:
        manifest = store.manifest(recipe.key)
        if manifest is None or order.anew:
            check_room(order, toolchain, store)
            make(order, toolchain, folder, store, stages)
        elif order.bar and manifest.quality is None:  # built by someone who did not ask for it
            quality = judged(order, toolchain, store.folder(recipe.key), stages.report)
            store.amend(msgspec.structs.replace(manifest, quality=quality))
        artifact = store.find(recipe.key, toolchain.entry)  # before somebody prunes it
    assert artifact
    return Built(artifact, stages.end())


def make(order: Build, toolchain: Toolchain, folder: Path, store: Store, stages: "Stages") -> None:
    recipe, source = order.recipe, order.source

    def report(stage: str, fraction: float) -> None:  # the toolchain's own check is the first half of that stage
        stages.report(stage, fraction / 2 if order.bar and stage == "check" else fraction)

    try:
        with origin(order, toolchain, report) as given:
            toolchain.build(given, recipe.precision, folder, report)
        check_unchanged(source)
        peak = peak_bytes()
        files = {file.name: File(file.stat().st_size, digest(file)) for file in sorted(folder.iterdir())}
        quality = judged(order, toolchain, folder, stages.report) if order.bar else None
    except Exception:  # a tool says in its own way, or not at all, that the disk is full
        check_disk(order, toolchain, store.free_bytes() + bytes_in(folder))
        raise
    created = datetime.now(UTC).isoformat(timespec="seconds")
    house = version("enginehouse")
    store.publish(folder, Manifest(recipe.key, recipe, source, files, stages.end(), peak, created, house, quality))


@contextmanager
def origin(order: Build, toolchain: Toolchain, report: Report) -> Iterator[Source]:
    """What the toolchain is given: its export of the source, if there is one."""
    folder, export = export_of(order.source, toolchain, order.recipe.precision, Path(order.cache)), toolchain.export
    if folder is None or export is None:
        with checkpoint(order, toolchain, report) as source:
            yield source
        return

    def make(folder: Path) -> None:
        with checkpoint(order, toolchain, report) as source:
            export.make(source, export.precision(source, order.recipe.precision), folder, report)

    with intermediate.kept(folder, make):
        yield resolve(order.source.id, at=str(folder))


def export_of(source: Source, toolchain: Toolchain, precision: str, cache: Path) -> Path | None:
    """Where what this precision is made of lies, there or not; None where that is the source itself."""
    if toolchain.export is None or source.kind == toolchain.format:
        return None
    recipe = toolchain.recipe(source, toolchain.export.precision(source, precision))
    return intermediate.place(cache, "exported", recipe.key)


@contextmanager
def checkpoint(order: Build, toolchain: Toolchain, report: Report) -> Iterator[Source]:
    """The source as converters read it, which holds numbers only."""
    if toolchain.dequantizes(order.source):
        from enginehouse.optimize.toolchains.gguf.dequantize import checkpoint_of

        with checkpoint_of(order.source, Path(order.cache), report) as made:
            yield made
    else:
        if order.source.kind == "checkpoint":
            check_weights(Path(order.source.path))
        yield order.source


def judged(order: Build, toolchain: Toolchain, folder: Path, report: Report) -> Quality:
    assert order.bar
    path, precision = folder / toolchain.entry, order.recipe.precision
    return judge(
        order.source,
        toolchain,
        precision,
        path,
        Path(order.cache),
        order.bar,
        lambda done: report("check", (1 + done) / 2),
    )


def check_room(order: Build, toolchain: Toolchain, store: Store) -> None:
    """Refuses a build before it starts whose estimates are beyond the disk or the memory there is."""
    check_disk(order, toolchain, store.free_bytes())
    precision, free = order.recipe.precision, free_memory()
    needed = toolchain.memory_bytes(order.source, precision)
    if needed > free:
        raise CannotBuild(
            f"building {toolchain.format} {precision} takes about {needed >> 20} MiB of memory, {free >> 20} MiB are "
            "free; end what else runs, or build on a larger machine and give the artifact as the source",
            environment=True,
        )


def check_disk(order: Build, toolchain: Toolchain, free: int) -> None:
    """What is made on the way is counted where it is not there yet."""
    source, precision, cache = order.source, order.recipe.precision, Path(order.cache)
    needed = toolchain.needs_bytes(source, precision)
    exported = export_of(source, toolchain, precision, cache)
    if exported and exported.exists():
        needed -= bytes_in(exported)
    elif toolchain.dequantizes(source) and not folder_of(source, cache).exists():
        needed += bytes_in_16_bits(source)
    check_free(needed, free)


def check_unchanged(source: Source) -> None:
    """What was built bears the fingerprint that the source had when it was found."""
    if resolve(source.id, at=source.path).fingerprint != source.fingerprint:
        raise CannotBuild(f"source '{source.id}' changed while it was converted; ask again", environment=True)


def peak_bytes() -> int:
    """Memory resident at most, in this process or one that it ran; 0 on systems that do not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


class Stages:
    """Times the stages a toolchain reports and passes on at most a hundred steps of each."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._stage, self._percent, self._began = "", -1, time.monotonic()
        self._seconds: dict[str, float] = {}

    def report(self, stage: str, fraction: float) -> None:
        if stage != self._stage:
            self.end()
            self._stage, self._percent, self._began = stage, -1, time.monotonic()
        percent = int(fraction * 100)
        if percent > self._percent:
            self._percent = percent
            self._report(stage, fraction)

    def end(self) -> dict[str, float]:
        if self._stage:
            spent = self._seconds.get(self._stage, 0.0) + time.monotonic() - self._began
            self._seconds[self._stage] = round(spent, 3)
            self._stage = ""
        return self._seconds


def is_no_room(error: OSError) -> bool:
    return error.errno in NO_ROOM or "requested and" in str(error)  # numpy's tofile gives no errno


def no_room(order: Order, error: OSError) -> str:
    where = f"the cache '{order.cache}'" if isinstance(order, Build | Merge | Dequantize) else "the hub's cache"
    return f"no room on the disk of {where}: {error.strerror or error}; free some, or set cache_dir to another disk"


if __name__ == "__main__":
    carry_out(Order, work)
