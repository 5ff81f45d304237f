"""`enginehouse optimize`: builds what would serve a model, with its progress, and prints what came of it."""

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bar

from enginehouse.config.schema import Config
from enginehouse.optimize.artifact import Artifact, Manifest
from enginehouse.optimize.progress import Progress
from enginehouse.optimize.store import Store
from enginehouse.runtimes.engines import runtimes
from enginehouse.runtimes.errors import Unavailable
from enginehouse.runtimes.pool import routing
from enginehouse.runtimes.pool.pool import Pool
from enginehouse.runtimes.pool.routing import Decision
from enginehouse.server.cli.bench import pinned, pool_of
from enginehouse.server.cli.cache import figures, gib

SHOW_SECONDS = 0.2
MINUTES_FROM = 100  # seconds
LINE_PERCENT = 10  # between two lines where there is no terminal
T = TypeVar("T")


def run(config: Config, model: str, runtime: str | None, precision: str | None, anew: bool) -> None:
    """Raises Unavailable with the sentence of what could not be built."""
    pins = {"runtime": runtime, "precision": precision}
    changed = pinned(config, model, **{name: pin for name, pin in pins.items() if pin})
    asyncio.run(build(changed, model, anew, Store(Path(config.cache_dir).expanduser())))


async def build(config: Config, model: str, anew: bool, store: Store) -> None:
    async with pool_of(config) as pool:
        name = pool.resolve(model)
        with Shown(pool, name) as shown:
            decision = await shown.until(pool.decision(name))
            if not decision.ranked:
                reason = routing.why_none(decision, config.models[name], runtimes(), {})
                raise Unavailable(f"model '{name}': {reason}")
            candidate = decision.ranked[0].candidate
            if not candidate.precision:
                print(f"'{name}' is served by {candidate.runtime} as it is: there is nothing to build")
                return
            there = {manifest.key for manifest in store.manifests()}
            artifact = await shown.until(best(pool, name, decision, anew))
        manifest = store.manifest(artifact.key)
        assert manifest
        print(f"'{name}' for {candidate.runtime}: {describe(manifest)}")
        if artifact.key in there and not anew:
            print(f"it was there, built {manifest.created}; --force builds it anew")


async def best(pool: Pool, name: str, decision: Decision, anew: bool) -> Artifact:
    """What the first candidate loads; where it does not pass the quality gate, what comes instead of it."""
    while True:
        try:
            return await pool.prepare(name, decision.ranked[0], anew)
        except Unavailable as error:
            before, decision = decision, await pool.decision(name)
            if not decision.ranked or decision.ranked[0].candidate == before.ranked[0].candidate:
                raise
            print(error)


class Shown:
    """A bar on a terminal, lines elsewhere; both on stderr."""

    def __init__(self, pool: Pool, name: str) -> None:
        self._pool, self._name = pool, name
        console = Console(stderr=True)
        self._terminal = console.is_terminal
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self._bar = Bar(*columns, console=console, disable=not self._terminal)
        self._row = TaskID(0)
        self._last_line = ("", -LINE_PERCENT)  # the last line's stage and percent

    def __enter__(self) -> "Shown":
        self._bar.start()
        self._row = self._bar.add_task(self._name, total=100, left="")
        return self

    def __exit__(self, *raised: object) -> None:
        if raised[0] is None:
            self._show(Progress("done", 100.0, 0.0))
        self._bar.stop()

    async def until(self, doing: Coroutine[None, None, T]) -> T:
        """Shows how far it is until it is done; ends it when it is ended itself."""
        task = asyncio.create_task(doing)
        try:
            while not task.done():
                self._show(self._pool.progress(self._name))
                await asyncio.wait([task], timeout=SHOW_SECONDS)
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            raise
        return task.result()

    def _show(self, progress: Progress) -> None:
        left, percent = duration(progress.seconds_left), int(progress.percent)
        what = f"{self._name}: {progress.stage}"
        self._bar.update(self._row, completed=progress.percent, description=what, left=left)
        stage, last = self._last_line
        if not self._terminal and (stage != progress.stage or percent >= last + LINE_PERCENT or last < percent == 100):
            self._last_line = progress.stage, percent
            print(f"{what}, {percent} %, {left if percent < 100 else 'done'}", file=self._bar.console.file)


def duration(seconds: float) -> str:
    return f"{seconds:.0f} s left" if seconds < MINUTES_FROM else f"{seconds / 60:.0f} min left"


def describe(manifest: Manifest) -> str:
    """What an artifact is, and what it took."""
    size, whole = sum(file.bytes for file in manifest.files.values()), manifest.source.bytes
    spent = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in manifest.seconds.items())
    quality = figures(manifest.quality) if manifest.quality else "not compared with its source"
    return (
        f"{manifest.recipe.format} {manifest.recipe.precision}, {gib(whole)} -> {gib(size)} ({size / whole:.0%}); "
        f"{spent}; at most {gib(manifest.peak_bytes)} of memory; {quality}; {manifest.key}"
    )
