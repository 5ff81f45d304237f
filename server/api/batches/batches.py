"""The batches of a server: which run here, and what is left of those whose server was killed."""

import asyncio
import logging
import sqlite3
import time
from contextlib import ExitStack, suppress

from litestar import Litestar

from enginehouse.config.schema import bytes_of
from enginehouse.optimize.artifact import CannotBuild
from enginehouse.optimize.locks import Locks
from enginehouse.runtimes.pool.pool import Pool
from enginehouse.server.api.batches.batch_store import BatchStore
from enginehouse.server.api.batches.database import Database
from enginehouse.server.api.batches.file_store import FileStore
from enginehouse.server.api.batches.run import Left, Run, obstacle
from enginehouse.server.api.batches.types import StoredBatch

log = logging.getLogger("enginehouse.batches")
POLL_SECONDS = 5.0  # between two looks for batches that nobody runs: another server may have been killed
BROKEN_SECONDS = 60.0  # before one is tried again that met what was not expected
EXPIRY_SECONDS = 600.0
RUNNING = 32  # at a time; the oldest first


class Batches:
    def __init__(self, app: Litestar, cache: str) -> None:
        self._app = app
        self.database = Database(cache)
        self.files, self.store = FileStore(self.database, self._room), BatchStore(self.database)
        self._locks = Locks(self.database.cache)
        self._runs: dict[str, tuple[Run, asyncio.Task[None]]] = {}
        self._broken: dict[str, float] = {}  # when, by id
        self._look = asyncio.Event()
        self._expired = 0.0  # when last
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._keep_running())

    @property
    def under_way(self) -> int:
        """Lines that are being answered."""
        return sum(run.under_way for run, _ in self._runs.values())

    def look(self, id: str) -> None:
        """At a batch that is new, or was changed."""
        if id in self._runs:
            self._runs[id][0].look()
        self._look.set()

    async def end(self) -> None:
        """Those that run are left as they are, for the next server."""
        tasks = [task for task in (self._task, *(task for _, task in self._runs.values())) if task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep_running(self) -> None:
        while True:
            try:
                await self._begin_what_waits()
            except (sqlite3.Error, OSError) as error:
                log.warning("what batches there are cannot be read: %s", error)
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS):
                    await self._look.wait()
            self._look.clear()

    async def _begin_what_waits(self) -> None:
        if self._pool.draining or not await self.database.in_thread(self.database.exists):
            return
        unfinished = await self.database.in_thread(self.store.unfinished)
        for stored in unfinished:
            id = stored.batch.id
            if id not in self._runs and len(self._runs) < RUNNING and self._may_run(stored):
                run = Run(self._app, self.store, self.files, stored)
                self._runs[id] = run, asyncio.create_task(self._run(run))
        if time.monotonic() - self._expired > EXPIRY_SECONDS:
            self._expired = time.monotonic()
            held = frozenset(id for one in unfinished for id in (one.output, one.errors, one.batch.input_file_id))
            await self.database.in_thread(self.store.expire)
            await self.database.in_thread(self.files.expire, held)

    def _may_run(self, stored: StoredBatch) -> bool:
        if time.monotonic() < self._broken.get(stored.batch.id, 0.0):
            return False
        over = stored.ends_as or stored.batch.status == "cancelling" or time.time() >= stored.batch.expires_at
        return bool(over) or not obstacle(self._app, stored)

    async def _run(self, run: Run) -> None:
        """Unless another server does."""
        name = f"batch-{run.id}"
        try:
            with ExitStack() as lock:
                if not await asyncio.to_thread(lock.enter_context, self._locks.alone(name, wait=False)):
                    return
                await run.run()
                await asyncio.to_thread(self._locks.remove, name)
                self._look.set()  # there is room for the next
        except BlockingIOError:
            log.debug("another server runs batch '%s'", run.id)
        except Left as reason:
            log.info("batch '%s' is left for later: %s", run.id, reason)
        except CannotBuild as error:
            self._broken[run.id] = time.monotonic() + BROKEN_SECONDS
            log.warning("batch '%s' cannot be run: %s", run.id, error)
        except Exception:
            self._broken[run.id] = time.monotonic() + BROKEN_SECONDS
            log.exception("batch '%s' met what was not expected; it is tried again", run.id)
        finally:
            del self._runs[run.id]

    def _room(self) -> tuple[str, int]:
        size = self._pool.config.batch_disk
        return size, bytes_of(size, 0)

    @property
    def _pool(self) -> Pool:
        pool: Pool = self._app.state.pool
        return pool
