"""prepare(source, toolchain, precision) -> Artifact: from the store, or built in a child process and kept there."""

import asyncio
import contextlib
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from enginehouse.optimize.artifact import Artifact, CannotBuild, Source, Toolchain
from enginehouse.optimize.build import (
    Build,
    Built,
    Failed,
    Fetch,
    FetchAdapter,
    Fetched,
    Merge,
    Merged,
    Order,
    Progress,
    Report,
)
from enginehouse.optimize.sources.adapter import find_adapter, folder_of
from enginehouse.optimize.sources.resolve import is_hub_id, resolve
from enginehouse.optimize.store import Store

log = logging.getLogger("enginehouse.optimize")
Reporter = Callable[[str, float], None]


async def locate(source: str, revision: str | None, report: Reporter, precision: str = "auto") -> Source:
    """The source on this disk, fetched from the hub first if it is there. Raises CannotBuild.

    `precision`: the model's, which decides where a source holds several .gguf files.
    """
    path = await fetched(source, Fetch(source, revision, precision), report) if is_hub_id(source) else ""
    return await asyncio.to_thread(resolve, source, precision, path)


async def adapt(base: Source, name: str, cache: Path, report: Reporter) -> Source:
    """The checkpoint with a PEFT adapter (a folder or hub id) merged into its weights: a checkpoint in the cache."""
    path = await fetched(name, FetchAdapter(name), report) if is_hub_id(name) else name
    adapter = await asyncio.to_thread(find_adapter, name, path, base)
    merged = folder_of(base, adapter, cache)
    if not merged.exists():
        log.info("merging adapter '%s' into '%s'", name, base.id)
        report("convert", 0.0)
        await run(Merge(base, adapter, str(cache)), report)
    return await asyncio.to_thread(resolve, f"{base.id} + {name}", at=str(merged))


async def fetched(name: str, order: Fetch | FetchAdapter, report: Reporter) -> str:
    report("fetch", 0.0)
    answer = await run(order, report)
    assert isinstance(answer, Fetched)
    if answer.offline:
        log.warning("the hub cannot be reached; '%s' is what its cache has: %s", name, answer.path)
    return answer.path


async def prepare(
    source: Source,
    toolchain: Toolchain,
    precision: str,
    cache: Path,
    report: Reporter,
    gate: bool = True,
    anew: bool = False,
) -> Artifact:
    """Any number of callers, in any number of processes, lead to one build: the store's lock makes the rest wait.

    `gate`: the artifact is compared with its source, if that was not done before. `anew`: it is built though there is
    one already, which stays until the new one is whole.
    """
    recipe, store = toolchain.recipe(source, precision), Store(cache)
    artifact = store.find(recipe.key, toolchain.entry)
    if artifact and (artifact.quality or not gate) and not anew:
        return artifact
    begun = "comparing %s %s with '%s' (%s)" if artifact and not anew else "building %s %s from '%s' (%s)"
    log.info(begun, recipe.format, precision, source.id, size(source.bytes))
    try:
        built = await run(Build(source, recipe, str(cache), gate, anew), report)
    except BaseException:
        await asyncio.to_thread(store.sweep)  # what a build that was ended or killed has left
        raise
    assert isinstance(built, Built)
    spent = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in built.seconds.items()) or "by another process"
    log.info("built %s: %s -> %s; %s", recipe.key, size(source.bytes), size(built.artifact.bytes), spent)
    return built.artifact


def size(count: int) -> str:
    return f"{count / (1 << 20):.1f} MiB"


async def run(order: Order, report: Reporter) -> Fetched | Merged | Built:
    """One child process from start to its last word."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "enginehouse.optimize.build",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is the server's to answer
    )
    assert child.stdin and child.stdout
    last: Report | None = None
    try:
        with contextlib.suppress(ConnectionError):
            child.stdin.write(msgspec.json.encode(order) + b"\n")
            await child.stdin.drain()
        async for line in child.stdout:
            last = msgspec.json.decode(line, type=Report)
            if isinstance(last, Progress):
                report(last.stage, last.fraction)
    finally:
        child.stdin.close()  # the child ends at that, whatever it is doing
        status = await child.wait()
    match last:
        case Fetched() | Merged() | Built():
            return last
        case Failed(reason, environment):
            raise CannotBuild(reason, environment)
        case _:
            reason = f"the build process ended with status {status} in the middle of its work; see the log"
            raise CannotBuild(reason, environment=status < 0)  # killed: not the fault of what it built
