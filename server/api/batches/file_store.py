"""Files that clients upload and that batches write: in so many bytes altogether, and each whole or not at all."""

import contextlib
import os
import secrets
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from enginehouse.runtimes.errors import Refused
from enginehouse.server.api.batches.database import LEAST_BYTES, Database
from enginehouse.server.api.batches.types import FileObject
from enginehouse.server.limits import FILES

FIELDS = "id, bytes, created, expires, name, purpose"
ABANDONED_SECONDS = 3600  # after which an upload that did not come to its end is none


class StorageFull(Exception):
    """There is no room for more files, as the config says."""


class FileStore:
    """A file belongs to an owner, who alone can see it. It blocks, as the database does."""

    def __init__(self, database: Database, room: Callable[[], tuple[str, int]]) -> None:
        """`room`: for all files together, as the config has it, and in bytes."""
        self._database, self._room = database, room

    def path(self, id: str) -> Path:
        return self._database.folder / id

    def begin(self, owner: str, name: str, purpose: str, seconds: int, size: int) -> str:
        """A file that is to be written and is not there yet, with room for so many bytes. Raises StorageFull."""
        id, now = f"file-{secrets.token_hex(12)}", int(time.time())
        with self._database.open() as db:
            if db.execute("select count(*) from files where owner = ?", (owner,)).fetchone()[0] >= FILES:
                message = f"this API key has {FILES} files already; delete some, with their batches' outputs"
                raise Refused(message, "file", "too_many_files")
            self._check_room(db, id, size)
            row = (id, owner, now, now + seconds, size, name, purpose)
            db.execute("insert into files values (?, ?, ?, ?, ?, ?, ?, 0)", row)
        return id

    def reserve(self, id: str, size: int) -> None:
        """Room for so many bytes in one that is being written. Raises StorageFull."""
        with self._database.open() as db:
            self._check_room(db, id, size)
            db.execute("update files set bytes = ? where id = ?", (size, id))

    def _check_room(self, db: sqlite3.Connection, id: str, size: int) -> None:
        text, most = self._room()
        query = f"select coalesce(sum(max(bytes, {LEAST_BYTES})), 0) from files where id != ?"
        taken = db.execute(query, (id,)).fetchone()[0]
        if taken + max(size, LEAST_BYTES) > most:
            raise StorageFull(
                f"{size} bytes more are too many: files may take 'batch_disk', {text}, and take {taken} bytes; "
                "delete some, or raise it"
            )

    def describe(self, id: str, name: str, seconds: int) -> None:
        """Of one that is not there yet: what its form said after it."""
        with self._database.open() as db:
            db.execute("update files set name = ?, expires = created + ? where id = ?", (name, seconds, id))

    def publish(self, id: str) -> FileObject:
        """Makes one visible that was written, its bytes on the disk before that."""
        path = self.path(id)
        sync(path)
        sync(path.parent)
        with self._database.open() as db:
            self.publish_in(db, id)
            row = db.execute(f"select {FIELDS} from files where id = ?", (id,)).fetchone()
        return FileObject(*row)

    def publish_in(self, db: sqlite3.Connection, id: str) -> None:
        """Its time begins with it."""
        query = "update files set ready = 1, bytes = ?, expires = expires - created + ?, created = ? where id = ?"
        now = int(time.time())
        db.execute(query, (self.path(id).stat().st_size, now, now, id))

    def drop_in(self, db: sqlite3.Connection, id: str) -> None:
        db.execute("delete from files where id = ?", (id,))

    def size(self, id: str) -> int:
        try:
            return self.path(id).stat().st_size
        except FileNotFoundError:
            return 0

    def drop(self, id: str) -> None:
        """Whether it is there or not."""
        try:
            with self._database.open() as db:
                self.drop_in(db, id)
        finally:
            self.path(id).unlink(missing_ok=True)

    def get(self, owner: str, id: str) -> FileObject | None:
        with self._database.open() as db:
            query = f"select {FIELDS} from files where owner = ? and id = ? and ready and expires > ?"
            row = db.execute(query, (owner, id, int(time.time()))).fetchone()
        return FileObject(*row) if row else None

    def listed(
        self, owner: str, purpose: str | None, after: str | None, most: int, newest_first: bool
    ) -> list[FileObject] | None:
        """Those that come after the one of that id; None where there is none of it."""
        way, beyond = ("desc", "<") if newest_first else ("asc", ">")
        query = f"select {FIELDS} from files where owner = ? and ready and expires > ?"
        values: list[object] = [owner, int(time.time())]
        with self._database.open() as db:
            if purpose is not None:
                query += " and purpose = ?"
                values.append(purpose)
            if after is not None:
                found = db.execute("select created, rowid from files where owner = ? and id = ?", (owner, after))
                if (place := found.fetchone()) is None:
                    return None
                query += f" and (created, rowid) {beyond} (?, ?)"
                values += place
            rows = db.execute(f"{query} order by created {way}, rowid {way} limit ?", (*values, most)).fetchall()
        return [FileObject(*row) for row in rows]

    def expire(self, held: frozenset[str]) -> None:
        """Removes those whose time is over, and what was never finished, but for those that batches hold."""
        now = int(time.time())
        query = "select id from files where expires <= ? or (not ready and created < ?)"
        with self._database.open() as db:
            over = [id for (id,) in db.execute(query, (now, now - ABANDONED_SECONDS)) if id not in held]
            known = {id for (id,) in db.execute("select id from files")}
        for id in over:
            self.drop(id)
        for path in self._database.folder.iterdir():  # a file that was dropped and not yet removed
            with contextlib.suppress(FileNotFoundError):
                if path.stem not in known and path.stat().st_mtime < now - ABANDONED_SECONDS:
                    path.unlink()


def sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
