"""prepare(source, toolchain, precision) -> Artifact: from the store, or built in a child process and kept there."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from enginehouse.config.schema import Optimize
from enginehouse.optimize import intermediate
from enginehouse.optimize.artifact import Artifact, CannotBuild, Report, Source, Toolchain, bits, bytes_in_16_bits
from enginehouse.optimize.build import (
    Build,
    Built,
    Dequantize,
    Dequantized,
    Fetch,
    FetchAdapter,
    Fetched,
    Merge,
    Merged,
    Order,
    export_of,
)
from enginehouse.optimize.child_process import Result, run
from enginehouse.optimize.sources import dequantize
from enginehouse.optimize.sources.adapter import find_adapter, folder_of
from enginehouse.optimize.sources.resolve import is_hub_id, resolve
from enginehouse.optimize.store import Store

log = logging.getLogger("enginehouse.optimize")
DEFAULT_RULES = Optimize()
# What a build may compute without a word; the longest step seen took 46 s for a quarter of a GiB, on a busy machine.
PATIENCE_SECONDS, PATIENCE_SECONDS_PER_GIB = 900.0, 900.0
InThread = Callable[..., Awaitable[Any]]  # as asyncio.to_thread: what looks at files, which may hang


async def locate(
    source: str,
    revision: str | None,
    report: Report,
    precision: str = "auto",
    in_thread: InThread = asyncio.to_thread,
    cached_only: bool = False,
) -> Source:
    """The source on this disk, fetched from the hub first if it is there. Raises CannotBuild.

    `precision`: the model's, which decides where a source holds several .gguf files. `cached_only`: what would
    have to be fetched or made for it is refused.
    """
    path = await fetched(source, Fetch(source, revision, precision, cached_only), report) if is_hub_id(source) else ""
    found: Source = await in_thread(resolve, source, precision, path)
    return found


async def in_16_bits(
    source: Source,
    cache: Path,
    report: Report,
    in_thread: InThread = asyncio.to_thread,
    cached_only: bool = False,
) -> Source:
    """The source, or where its weights are quantized in a way that is known, the same in 16 bits: in the cache."""
    if not await in_thread(dequantize.is_quantized, source):
        return source
    made = dequantize.folder_of(source, cache)
    if not made.exists():
        if cached_only:
            raise CannotBuild(f"source '{source.id}' is not brought to 16 bits yet", environment=True)
        log.info("bringing the quantized weights of '%s' to 16 bits (%s)", source.id, mebibytes(source.bytes))
        report("convert", 0.0)
        await build_process(Dequantize(source, str(cache)), Dequantized, report, bytes_in_16_bits(source))
    await in_thread(intermediate.touch, made)
    found: Source = await in_thread(resolve, source.id, at=str(made))
    return found


async def adapt(
    base: Source,
    name: str,
    cache: Path,
    report: Report,
    in_thread: InThread = asyncio.to_thread,
    cached_only: bool = False,
) -> Source:
    """The checkpoint with a PEFT adapter (a folder or hub id) merged into its weights: a checkpoint in the cache."""
    path = await fetched(name, FetchAdapter(name, cached_only), report) if is_hub_id(name) else name
    adapter = await in_thread(find_adapter, name, path, base)
    merged = folder_of(base, adapter, cache)
    if not merged.exists():
        if cached_only:
            raise CannotBuild(f"adapter '{name}' is not merged yet", environment=True)
        log.info("merging adapter '%s' into '%s'", name, base.id)
        report("convert", 0.0)
        await build_process(Merge(base, adapter, str(cache)), Merged, report, bytes_in_16_bits(base))
    await in_thread(intermediate.touch, merged)
    found: Source = await in_thread(resolve, f"{base.id} + {name}", at=str(merged))
    return found


async def fetched(name: str, order: Fetch | FetchAdapter, report: Report) -> str:
    report("fetch", 0.0)
    found = await build_process(order, Fetched, report)
    if found.offline and not order.cached_only:
        log.warning("the hub cannot be reached; '%s' is what its cache has: %s", name, found.path)
    return found.path


async def prepare(
    source: Source,
    toolchain: Toolchain,
    precision: str,
    cache: Path,
    report: Report,
    rules: Optimize | None = DEFAULT_RULES,
    anew: bool = False,
    timed: Callable[[Mapping[str, float]], None] = lambda seconds: None,
) -> Artifact:
    """Any number of callers, in any number of processes, lead to one build: the store's lock makes the rest wait.

    `rules`: the artifact is compared with its source, if that was not done before; None: it is not. `anew`: it is built
    though there is one already, which stays until the new one is whole. `timed` takes the seconds of a build, by stage.
    """
    recipe, store = toolchain.recipe(source, precision), Store(cache)
    artifact = store.find(recipe.key, toolchain.entry)
    if artifact and (artifact.quality or not rules) and not anew:
        return artifact
    begun = "comparing %s %s with '%s' (%s)" if artifact and not anew else "building %s %s from '%s' (%s)"
    log.info(begun, recipe.format, precision, source.id, mebibytes(source.bytes))
    try:
        bar = rules.limits(bits(precision)) if rules else None
        order = Build(source, recipe, str(cache), bar, anew)
        built = await build_process(order, Built, report, bytes_in_16_bits(source))
    except BaseException:
        await asyncio.to_thread(store.sweep)  # what a build that was ended or killed has left
        raise
    if built.seconds:  # else another process made it
        timed(built.seconds)
    spent = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in built.seconds.items()) or "by another process"
    log.info("built %s: %s -> %s; %s", recipe.key, mebibytes(source.bytes), mebibytes(built.artifact.bytes), spent)
    return built.artifact


def forget_exports(source: Source, toolchain: Toolchain, precision: str, cache: Path) -> None:
    """An artifact of this precision is good, or the last of the ladder: no more are to be made of its source."""
    exports = {export_of(source, toolchain, rung, cache) for rung in (*toolchain.ladder, precision)}
    for folder in filter(None, exports):
        intermediate.remove(folder)


def mebibytes(count: int) -> str:
    return f"{count / (1 << 20):.1f} MiB"


async def build_process(order: Order, result: type[Result], report: Report, size: int = 0) -> Result:
    """`size`: of what is worked on, in bytes."""
    patience = PATIENCE_SECONDS + PATIENCE_SECONDS_PER_GIB * size / 2**30
    return await run("enginehouse.optimize.build", order, result, report, "the build process", patience=patience)
