"""One batch under way: its lines are checked, asked one after the other as slots are idle, and handed out as files."""

import asyncio
import contextlib
import itertools
import logging
import sqlite3
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar

import msgspec
from litestar import Litestar

from enginehouse.runtimes.errors import Unavailable, UnknownModel
from enginehouse.runtimes.pool.pool import Pool
from enginehouse.server import internal_request
from enginehouse.server.api.batches import input_lines
from enginehouse.server.api.batches.batch_store import BatchStore
from enginehouse.server.api.batches.ending import FAILURES, end, problem_of, request_id
from enginehouse.server.api.batches.file_store import FileStore
from enginehouse.server.api.batches.input_lines import Line
from enginehouse.server.api.batches.results import Kind, Results
from enginehouse.server.api.batches.types import ENDED, Counts, Problem, Problems, Status, StoredBatch, changed
from enginehouse.server.auth import Access, Caller
from enginehouse.server.internal_request import Reply
from enginehouse.server.rate_limits import Use, is_allowed

log = logging.getLogger("enginehouse.batches")
P = ParamSpec("P")
T = TypeVar("T")
LOOK_SECONDS = 1.0  # between two looks at whether it was cancelled or its time is over; then its counts are kept
AGAIN_SECONDS = 10.0  # between two attempts to keep how it ended
ATTEMPTS, LONGEST_WAIT_SECONDS = 3, 60.0  # of a line whose model could not be served
AT_ONCE, EMBEDDINGS_AT_ONCE = 32, 1  # lines; an engine lets nobody before an embedding


class Left(Exception):
    """It cannot go on here and now; another server, or a later one, does."""


class Run:
    def __init__(self, app: Litestar, batches: BatchStore, files: FileStore, stored: StoredBatch) -> None:
        self._app, self._batches, self._files = app, batches, files
        self._stored, self.id = stored, stored.batch.id
        self._results = Results(files, stored)
        self._thread = ThreadPoolExecutor(1, f"batch {self.id}")  # alone: what it writes is there in its order
        self._look = asyncio.Event()
        self._left = ""  # why it does not go on here
        self.under_way = 0  # lines

    def look(self) -> None:
        """At what has become of it in the database."""
        self._look.set()

    async def run(self) -> None:
        """To its end. Raises Left."""
        try:
            self._stored = await self._in_thread(self._batches.change, self.id, lambda stored: None)
            if self._stored.batch.status in ENDED:
                return  # another server was quicker
            status: Status | None = self._stored.ends_as
            problem: Problem | None = None
            if status is None and self._stored.batch.status == "validating":
                status = await self._check()
            if status is None and self._stored.batch.status == "cancelling":
                status = "cancelled"
            if status is None:
                status, problem = await self._answer()
            while not await self._ended(status, problem):  # noqa: ASYNC110  # a disk that is full tells nobody when not
                await asyncio.sleep(AGAIN_SECONDS)
        finally:
            await asyncio.to_thread(self._thread.shutdown)  # another server may go on from here

    async def _in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """In their order; what was begun is done, though nobody waits for it any more."""
        call = partial(work, *args, **kwargs)
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, call))

    async def _change(self, change: Callable[[StoredBatch], StoredBatch | None]) -> StoredBatch:
        self._stored = await self._in_thread(self._batches.change, self.id, change)
        return self._stored

    # --- before its lines are asked ---

    async def _check(self) -> Status | None:
        batch, pool, caller = self._stored.batch, self._pool, self._caller()

        def resolve(asked: str) -> str:
            try:
                name = pool.resolve(asked)
            except UnknownModel as error:
                raise LookupError(str(error)) from error
            if not is_allowed(pool, caller, asked):
                raise LookupError(f"this API key may not use the model '{asked}'")
            return name

        path = self._files.path(batch.input_file_id)
        try:
            checked = await self._in_thread(input_lines.check, path, batch, resolve)
        except FileNotFoundError:
            problem = Problem("file_not_found", f"there is no file '{batch.input_file_id}' any more")
            checked = input_lines.Checked(0, None, [problem])
        if checked.problems:
            log.info("batch '%s' is refused: %s", self.id, checked.problems[0].message)
            await self._change(lambda stored: changed(stored, errors=Problems(checked.problems)))
            return "failed"

        def begin(stored: StoredBatch) -> StoredBatch | None:
            if stored.batch.status != "validating":
                return None
            counts = msgspec.structs.replace(stored.batch.request_counts, total=checked.lines)
            now = int(time.time())
            return changed(stored, status="in_progress", in_progress_at=now, request_counts=counts, model=checked.model)

        await self._change(begin)
        log.info("batch '%s' begins: %d lines for '%s'", self.id, checked.lines, checked.model)
        return None

    # --- its lines ---

    async def _answer(self) -> tuple[Status, Problem | None]:
        """How it ends, and why."""
        try:
            await self._in_thread(self._results.open, self._stored.batch.request_counts.total)
            lines, watch = asyncio.create_task(self._lines()), asyncio.create_task(self._watch())
            try:
                await asyncio.wait((lines, watch), return_when=asyncio.FIRST_COMPLETED)
                if watch.done():
                    return watch.result(), None
                lines.result()
                return "completed", None
            finally:
                for task in (lines, watch):
                    task.cancel()
                await asyncio.gather(lines, watch, return_exceptions=True)
        except FAILURES as error:
            problem = problem_of(error)
            log.warning("batch '%s' cannot go on: %s", self.id, problem.message)
            await self._in_thread(self._results.make_room)
            return "failed", problem

    async def _lines(self) -> None:
        """Returns when all are answered. Raises Left, or what keeps their answers from being written."""
        unanswered = self._unanswered()
        try:
            async with asyncio.TaskGroup() as tasks:
                await self._feed(tasks, unanswered)
        except ExceptionGroup as group:
            raise group.exceptions[0] from group
        finally:
            await self._in_thread(unanswered.close)
        if self._left:
            raise Left(self._left)

    def _unanswered(self) -> Generator[Line, None, None]:
        for _, raw in input_lines.read(self._files.path(self._stored.batch.input_file_id)):
            line = input_lines.parse(raw)
            if not self._results.has(line.custom_id):
                yield line

    async def _feed(self, tasks: asyncio.TaskGroup, unanswered: Generator[Line, None, None]) -> None:
        """Begins one after the other."""
        model = self._stored.batch.model
        assert model
        most = EMBEDDINGS_AT_ONCE if self._stored.batch.endpoint == "/v1/embeddings" else AT_ONCE
        while not self._left and (line := await self._in_thread(next, unanswered, None)):
            self._left = self._obstacle()
            if self._left:
                return
            caller, name = self._caller(), self._pool.resolve(model)
            if caller:
                await half_free(self._app.state.uses.of(caller))
            try:
                await self._pool.idle_slots.take(name, most)
            except Unavailable as error:
                self._left = error.message
                return
            self.under_way += 1
            tasks.create_task(self._line(line, caller)).add_done_callback(partial(self._give_back, name))

    def _give_back(self, name: str, _: "asyncio.Task[None]") -> None:
        self.under_way -= 1
        self._pool.idle_slots.give_back(name)

    async def _line(self, line: Line, caller: Caller | None) -> None:
        id = request_id()
        for attempt in itertools.count(1):
            reply = await internal_request.ask(self._app, line.url, bytes(line.body), caller, id)
            if reply.status >= 400 and (reason := self._obstacle()):
                self._left = reason  # it may be the reason; the line is asked again where there is none
                return
            if reply.status != 429 and (reply.status != 503 or attempt == ATTEMPTS):
                break
            await asyncio.sleep(min(float(reply.headers.get("retry-after", 1)) * attempt, LONGEST_WAIT_SECONDS))
        kind: Kind = "output" if reply.status < 400 else "errors"
        await self._in_thread(self._results.add, kind, answered(line, id, reply))

    async def _watch(self) -> Status:
        """Why it ends before all is answered."""
        while True:
            try:
                await self._change(self._counted)
            except (sqlite3.Error, OSError) as error:
                log.warning("how far batch '%s' is cannot be kept: %s", self.id, error)
            if self._stored.batch.status == "cancelling":
                return "cancelled"
            if time.time() >= self._stored.batch.expires_at:
                return "expired"
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._look.wait()
            self._look.clear()

    def _counted(self, stored: StoredBatch) -> StoredBatch | None:
        counts = self._results.counts
        return None if counts == stored.batch.request_counts else changed(stored, request_counts=counts)

    # --- its end ---

    async def _ended(self, status: Status, problem: Problem | None) -> bool:
        """Whether it could be kept."""
        try:
            self._stored = await self._in_thread(
                end, self._batches, self._files, self._results, self._unanswered(), self.id, status, problem
            )
        except (sqlite3.Error, OSError) as error:
            log.warning("how batch '%s' ended cannot be kept, and is tried again: %s", self.id, error)
            return False
        log.info("batch '%s': %s, %s", self.id, self._stored.batch.status, told(self._results.counts))
        return True

    # --- who asks whom ---

    def _obstacle(self) -> str:
        return "the server is shutting down" if self._pool.draining else obstacle(self._app, self._stored)

    @property
    def _pool(self) -> Pool:
        pool: Pool = self._app.state.pool
        return pool

    def _caller(self) -> Caller | None:
        access: Access = self._app.state.access
        return access.by_owner(self._stored.owner)


def obstacle(app: Litestar, stored: StoredBatch) -> str:
    """Why a server with the config that it has cannot go on with it; "" if it can."""
    if not app.state.access.knows(stored.owner):
        return "the API key that made it is no longer one"
    if stored.batch.model:
        try:
            app.state.pool.resolve(stored.batch.model)
        except UnknownModel as error:
            return str(error)
    return ""


async def half_free(use: Use) -> None:
    """Returns when others with the key have used no more than half of their minute."""
    while wait := use.seconds_until_half():  # noqa: ASYNC110  # they go on using it
        await asyncio.sleep(min(wait, LOOK_SECONDS))


def answered(line: Line, id: str, reply: Reply) -> dict[str, Any]:
    body = msgspec.Raw(reply.body.replace(b"\n", b" "))  # on one line; in its texts they are written otherwise
    response = {"status_code": reply.status, "request_id": id, "body": body}
    return {"id": id, "custom_id": line.custom_id, "response": response, "error": None}


def told(counts: Counts) -> str:
    return f"{counts.completed} of {counts.total} lines answered, {counts.failed} failed"
