"""Responses that clients may come back to, and the items they were given. One SQLite file in the cache directory."""

import contextlib
import logging
import sqlite3
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

log = logging.getLogger("enginehouse.server")
FILE = "responses-1.sqlite"  # the number goes up with every change to the tables
RETENTION_SECONDS = 30 * 24 * 3600.0  # as OpenAI keeps them, so that what works there works here

SCHEMA = """
create table if not exists responses (id text primary key, previous text, at real, body blob);
create index if not exists responses_at on responses (at);
create table if not exists items (
    response text references responses (id) on delete cascade, place integer, given integer, id text, body blob,
    primary key (response, place));
create index if not exists items_id on items (id);
pragma foreign_keys = on;
"""
Item = dict[str, Any]


class ResponseStore:
    """Blocks while it works: call it in a thread. Raises sqlite3.Error or OSError where its file cannot be used."""

    def __init__(self, folder: str) -> None:
        self._file = Path(folder).expanduser() / FILE

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.touch(mode=0o600)  # it holds what people wrote
        with contextlib.closing(sqlite3.connect(self._file, timeout=10)) as db:
            db.executescript(SCHEMA)
            with db:
                yield db

    def save(self, response: dict[str, Any], given: list[Item]) -> None:
        """Keeps a response; those that are too old go."""
        now, id = time.time(), response["id"]
        items = [(item, True) for item in given] + [(item, False) for item in response["output"]]
        with self._open() as db:
            db.execute("delete from responses where at < ?", (now - RETENTION_SECONDS,))
            body = msgspec.json.encode(response)
            db.execute("insert into responses values (?, ?, ?, ?)", (id, response["previous_response_id"], now, body))
            db.executemany(
                "insert into items values (?, ?, ?, ?, ?)",
                [
                    (id, place, is_given, item["id"], msgspec.json.encode(item))
                    for place, (item, is_given) in enumerate(items)
                ],
            )

    def response(self, id: str) -> dict[str, Any] | None:
        with self._open() as db:
            row = db.execute("select body from responses where id = ?", (id,)).fetchone()
        return decoded(row[0]) if row else None

    def delete(self, id: str) -> bool:
        """Whether there was one."""
        with self._open() as db:
            return db.execute("delete from responses where id = ?", (id,)).rowcount > 0

    def given(self, id: str) -> list[Item]:
        """The items a response was asked with."""
        with self._open() as db:
            rows = db.execute("select body from items where response = ? and given order by place", (id,)).fetchall()
        return [decoded(body) for (body,) in rows]

    def items(self, ids: Iterable[str]) -> dict[str, Item]:
        """Those there are of these ids; the latest, where several have one."""
        query = "select body from items where id = ? order by rowid desc limit 1"
        with self._open() as db:
            rows = {id: db.execute(query, (id,)).fetchone() for id in ids}
        return {id: decoded(row[0]) for id, row in rows.items() if row}

    def conversation(self, id: str) -> list[Item] | None:
        """All items up to and with a response's own, oldest first; None if it or one before it is gone."""
        turns: list[list[Item]] = []
        with self._open() as db:
            before: str | None = id
            while before is not None:
                row = db.execute("select previous from responses where id = ?", (before,)).fetchone()
                if row is None:
                    return None
                rows = db.execute("select body from items where response = ? order by place", (before,)).fetchall()
                turns.append([decoded(body) for (body,) in rows])
                before = row[0]
        return flat(reversed(turns))


def decoded(body: bytes) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.json.decode(body)
    return fields


def flat(turns: Iterable[list[Item]]) -> list[Item]:
    return [item for turn in turns for item in turn]
