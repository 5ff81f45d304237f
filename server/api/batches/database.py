"""One SQLite file with what is known of files and batches, and the folder that the files lie in."""

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ParamSpec, TypeVar

from enginehouse.runtimes.pool.threads import Threads

P = ParamSpec("P")
T = TypeVar("T")
FILE, FOLDER = "batches-1.sqlite", "files"  # of the cache; the number goes up with every change to the tables
THREADS = 2
LEAST_BYTES = 4096  # that a file counts: what it takes on a disk

SCHEMA = """
create table if not exists files (
    id text primary key, owner text, created integer, expires integer, bytes integer, name text, purpose text,
    ready integer);
create index if not exists files_of on files (owner, created);
create table if not exists batches (id text primary key, owner text, at integer, ended integer, body blob);
create index if not exists batches_of on batches (owner, at);
"""


class Database:
    """It blocks: call what uses it by `in_thread`. Raises sqlite3.Error or OSError where its file cannot be used."""

    def __init__(self, cache: str) -> None:
        self.cache = Path(cache).expanduser()
        self.folder = self.cache / FOLDER
        self._file = self.cache / FILE
        self._threads = Threads(THREADS)

    async def in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """In threads of its own: a disk that hangs holds up nothing else."""
        return await self._threads.run(FILE, work, *args, **kwargs)

    def exists(self) -> bool:
        return self._file.exists()

    @contextlib.contextmanager
    def open(self) -> Iterator[sqlite3.Connection]:
        """All that is done with it is done at once, also beside other servers, or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # what people wrote
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self._file, os.O_CREAT | os.O_EXCL, 0o600))
        with contextlib.closing(sqlite3.connect(self._file, timeout=30, isolation_level=None)) as db:
            db.executescript(SCHEMA)
            db.execute("begin immediate")
            try:
                yield db
            except BaseException:
                if db.in_transaction:  # a full disk has ended it already
                    db.execute("rollback")
                raise
            db.execute("commit")
