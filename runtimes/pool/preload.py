"""Models that are to be loaded from the start: each is ready when it has given a token."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context

from enginehouse.runtimes.errors import EngineFailed, Refused, Unavailable, UnknownModel

log = logging.getLogger("enginehouse.pool")
AGAIN_SECONDS = 30.0  # after a failure: what it lacked may come


class Preload:
    def __init__(self, answer_once: Callable[[str], Awaitable[None]]) -> None:
        """`answer_once` loads a model and has it answer; it raises what a request for it would meet."""
        self._answer_once = answer_once
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._failures: dict[str, str] = {}  # of those that are not ready

    def want(self, models: Sequence[str]) -> None:
        """These and no others. One that was ready stays so; one that failed is tried again at once."""
        for name in (self._tasks.keys() - set(models)) | self._failures.keys():
            self._tasks.pop(name).cancel()
        self._failures.clear()
        for name in models:
            if name not in self._tasks:
                self._tasks[name] = asyncio.create_task(self._load(name))

    def doubt(self, name: str) -> None:
        """A request found that it cannot be had. If it was ready, it is so again when it has given another token."""
        if name in self._tasks and self._tasks[name].done():
            self._tasks[name] = asyncio.create_task(self._load(name), context=Context())

    def pending(self) -> str | None:
        """Which are not ready and why; None when all are."""
        waiting = [name for name, task in self._tasks.items() if not task.done()]
        said = [f"'{name}' {self._failures.get(name, 'is being loaded')}" for name in waiting]
        return f"preloading: {'; '.join(said)}" if said else None

    async def ready(self) -> None:
        """Returns when all that are wanted are ready."""
        while waiting := [task for task in self._tasks.values() if not task.done()]:
            await asyncio.wait(waiting)

    async def end(self) -> None:
        tasks = list(self._tasks.values())
        self.want(())
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _load(self, name: str) -> None:
        while True:
            try:
                await self._answer_once(name)
            except (Refused, Unavailable, EngineFailed, UnknownModel) as error:
                self._failures[name] = f"failed: {error}"
                log.error("'%s' cannot be preloaded: %s; tried again in %.0f s", name, error, AGAIN_SECONDS)
                await asyncio.sleep(AGAIN_SECONDS)
            else:
                self._failures.pop(name, None)
                return
