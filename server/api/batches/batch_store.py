"""Batches, as they are kept."""

import time
from collections.abc import Callable

import msgspec

from enginehouse.runtimes.errors import RETRY_SECONDS, Busy
from enginehouse.server.api.batches.database import Database
from enginehouse.server.api.batches.types import ENDED, Batch, StoredBatch
from enginehouse.server.limits import BATCHES

RETENTION_SECONDS = 30 * 24 * 3600  # after its end

Change = Callable[[StoredBatch], StoredBatch | None]


class BatchStore:
    """A batch belongs to an owner, who alone can see it. It blocks, as the database does."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, stored: StoredBatch) -> None:
        with self._database.open() as db:
            query = "select count(*) from batches where owner = ? and ended is null"
            if db.execute(query, (stored.owner,)).fetchone()[0] >= BATCHES:
                raise Busy(f"{BATCHES} batches of this API key have not ended yet", "too_many_batches", RETRY_SECONDS)
            row = (stored.batch.id, stored.owner, stored.batch.created_at, msgspec.json.encode(stored))
            db.execute("insert into batches values (?, ?, ?, null, ?)", row)

    def get(self, id: str) -> StoredBatch | None:
        with self._database.open() as db:
            row = db.execute("select body from batches where id = ?", (id,)).fetchone()
        return decoded(row[0]) if row else None

    def owned(self, owner: str, id: str) -> Batch | None:
        stored = self.get(id)
        return stored.batch if stored and stored.owner == owner else None

    def change(self, id: str, change: Change, publish: Callable[..., None] | None = None) -> StoredBatch:
        """What has become of it; `change` says None where it stays as it is. `publish`: what is done with it, with the
        database, or not at all."""
        with self._database.open() as db:
            (body,) = db.execute("select body from batches where id = ?", (id,)).fetchone()
            before = decoded(body)
            after = change(before)
            if after is None:
                return before
            ended = int(time.time()) if after.batch.status in ENDED else None
            db.execute("update batches set body = ?, ended = ? where id = ?", (msgspec.json.encode(after), ended, id))
            if publish:
                publish(db)
        return after

    def listed(self, owner: str, after: str | None, most: int) -> list[Batch] | None:
        """The newest first, and those that come after the one of that id; None where there is none of it."""
        query, values = "select body from batches where owner = ?", list[object]([owner])
        with self._database.open() as db:
            if after is not None:
                found = db.execute("select at, rowid from batches where owner = ? and id = ?", (owner, after))
                if (place := found.fetchone()) is None:
                    return None
                query += " and (at, rowid) < (?, ?)"
                values += place
            rows = db.execute(f"{query} order by at desc, rowid desc limit ?", (*values, most)).fetchall()
        return [decoded(body).batch for (body,) in rows]

    def unfinished(self) -> list[StoredBatch]:
        """The oldest first."""
        with self._database.open() as db:
            rows = db.execute("select body from batches where ended is null order by at, rowid").fetchall()
        return [decoded(body) for (body,) in rows]

    def expire(self) -> None:
        """Forgets what ended long ago."""
        with self._database.open() as db:
            db.execute("delete from batches where ended < ?", (int(time.time()) - RETENTION_SECONDS,))


def decoded(body: bytes) -> StoredBatch:
    return msgspec.json.decode(body, type=StoredBatch)
