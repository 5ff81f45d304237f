"""`python -m optimize.build`: one fetch or conversion in its own process; orders on stdin, reports on stdout."""

import errno
import os
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import msgspec

from optimize.hub import fetch
from optimize.memory import free_memory
from optimize.recipe import Artifact, CannotBuild, File, Manifest, Recipe, Source, Toolchain
from optimize.store import Store, digest
from optimize.toolchains import toolchains

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Fetch(msgspec.Struct, tag="fetch", frozen=True):
    source: str
    revision: str | None


class Build(msgspec.Struct, tag="build", frozen=True):
    source: Source
    recipe: Recipe
    cache: str
    gate: bool = True  # compare the artifact with its source
    anew: bool = False  # though there is one already


class Progress(msgspec.Struct, tag="progress", frozen=True):
    stage: str
    fraction: float


class Fetched(msgspec.Struct, tag="fetched", frozen=True):
    path: str


class Built(msgspec.Struct, tag="built", frozen=True):
    artifact: Artifact
    seconds: dict[str, float]  # by stage; empty if another process had built it


class Failed(msgspec.Struct, tag="failed", frozen=True):
    message: str
    environment: bool = False  # as in CannotBuild


Order = Fetch | Build
Report = Progress | Fetched | Built | Failed


def main() -> None:
    out = os.dup(1)  # tools print to stdout as they like; it is stderr from here on
    os.dup2(2, 1)

    def send(report: Report) -> None:
        os.write(out, msgspec.json.encode(report) + b"\n")

    with os.fdopen(0, "rb", buffering=0, closefd=False) as orders:
        order = msgspec.json.decode(orders.readline(), type=Order)
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        match order:
            case Fetch(source, revision):
                send(Fetched(fetch(source, revision)))
            case Build(gate=gate):
                if gate:  # nobody may be waiting for it, and others are served meanwhile
                    os.nice(10)
                send(build(order, send))
    except CannotBuild as error:
        send(Failed(str(error), error.environment))
    except OSError as error:
        send(Failed(no_room(order, error) if is_no_room(error) else f"building failed: {error}", environment=True))
    except MemoryError:
        send(Failed("building ran out of memory", environment=True))


def end_with_parent() -> None:
    while os.read(0, 1 << 16):  # not through sys.stdin, whose lock a thread may not hold when the interpreter ends
        pass
    os._exit(1)


def build(order: Build, send: Callable[[Report], None]) -> Built:
    recipe, store = order.recipe, Store(Path(order.cache))
    toolchain = toolchains()[recipe.format]
    store.sweep()
    with store.building(recipe.key) as folder:
        artifact = store.find(recipe.key, toolchain.entry)
        if artifact and not order.anew:
            return Built(artifact, {})
        check_room(order, toolchain, store)
        stages = Stages(send)
        toolchain.build(order.source, recipe.precision, folder, stages.report)
        seconds = stages.end()
        files = {file.name: File(file.stat().st_size, digest(file)) for file in sorted(folder.iterdir())}
        created = datetime.now(UTC).isoformat(timespec="seconds")
        own = version("enginehouse")
        store.publish(folder, Manifest(recipe.key, recipe, order.source, files, seconds, peak_bytes(), created, own))
    artifact = store.find(recipe.key, toolchain.entry)
    assert artifact
    return Built(artifact, seconds)


def check_room(order: Build, toolchain: Toolchain, store: Store) -> None:
    """Refuses a build before it starts whose estimates are beyond the disk or the memory there is."""
    source, precision = order.source, order.recipe.precision
    needed, free = toolchain.needs_bytes(source, precision), store.free_bytes()
    if needed > free:
        raise OSError(errno.ENOSPC, f"{needed >> 20} MiB are needed, {free >> 20} MiB are free")
    needed, free = toolchain.memory_bytes(source, precision), free_memory()
    if needed > free:
        raise CannotBuild(
            f"building {toolchain.format} {precision} takes about {needed >> 20} MiB of memory, {free >> 20} MiB are "
            "free; end what else runs, or build on a larger machine and give the artifact as the source",
            environment=True,
        )


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

    def __init__(self, send: Callable[[Report], None]) -> None:
        self._send = send
        self._stage, self._percent, self._began = "", -1, time.monotonic()
        self._seconds: dict[str, float] = {}

    def report(self, stage: str, fraction: float) -> None:
        if stage != self._stage:
            self.end()
            self._stage, self._percent, self._began = stage, -1, time.monotonic()
        percent = int(fraction * 100)
        if percent > self._percent:
            self._percent = percent
            self._send(Progress(stage, fraction))

    def end(self) -> dict[str, float]:
        if self._stage:
            spent = self._seconds.get(self._stage, 0.0) + time.monotonic() - self._began
            self._seconds[self._stage] = round(spent, 3)
            self._stage = ""
        return self._seconds


def is_no_room(error: OSError) -> bool:
    return error.errno in NO_ROOM or "requested and" in str(error)  # numpy's tofile gives no errno


def no_room(order: Order, error: OSError) -> str:
    where = f"the cache '{order.cache}'" if isinstance(order, Build) else "the hub's cache"
    return f"no room on the disk of {where}: {error.strerror or error}; free some, or set cache_dir to another disk"


if __name__ == "__main__":
    main()
