"""Responses and chat completions that clients may come back to, and what they were given. One SQLite file in the cache
directory."""

import contextlib
import logging
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import msgspec

from enginehouse.runtimes.errors import Refused
from enginehouse.runtimes.pool.threads import Threads
from enginehouse.server.api.pages import no_such_item
from enginehouse.server.limits import CONVERSATION_BYTES, CONVERSATION_ITEMS, CONVERSATIONS, CONVERSATIONS_BYTES

log = logging.getLogger("enginehouse.server")
FILE = "responses-3.sqlite"  # the number goes up with every change to the tables
THREADS = 2
P = ParamSpec("P")
T = TypeVar("T")
RETENTION_SECONDS = 30 * 24 * 3600.0  # as OpenAI keeps them, so that what works there works here

SCHEMA = """
create table if not exists responses (
    id text primary key, owner text, previous text, at real, body blob);
create index if not exists responses_at on responses (at);
create table if not exists items (
    response text references responses (id) on delete cascade, place integer, given integer, owner text, id text,
    body blob,
    primary key (response, place));
create index if not exists items_id on items (owner, id);
create table if not exists conversations (
    id text primary key, owner text, at real, created integer, metadata blob, items integer default 0,
    bytes integer default 0);
create index if not exists conversations_of on conversations (owner);
create table if not exists said (
    place integer primary key, conversation text references conversations (id) on delete cascade, id text, body blob);
create unique index if not exists said_in on said (conversation, id);
create index if not exists said_after on said (conversation, place);
pragma foreign_keys = on;
"""
Item = dict[str, Any]


class ResponseStore:
    """What is stored belongs to an owner, who alone can read, go on from or delete it; what is too old is gone. It
    blocks: call it by `in_thread`. Raises sqlite3.Error or OSError where its file cannot be used."""

    def __init__(self, folder: str) -> None:
        self._file = Path(folder).expanduser() / FILE
        self._threads = Threads(THREADS)

    async def in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """In threads of its own: a disk that hangs holds up nothing else."""
        return await self._threads.run(FILE, work, *args, **kwargs)

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.touch(mode=0o600)  # it holds what people wrote
        with contextlib.closing(sqlite3.connect(self._file, timeout=10)) as db:
            db.executescript(SCHEMA)
            with db:
                for table in ("responses", "conversations"):
                    db.execute(f"delete from {table} where at < ?", (time.time() - RETENTION_SECONDS,))
                yield db

    def save(self, owner: str, response: dict[str, Any], given: list[Item]) -> None:
        id = response["id"]
        items = [(item, True) for item in given] + [(item, False) for item in response["output"]]
        with self._open() as db:
            body = msgspec.json.encode(response)
            row = (id, owner, response["previous_response_id"], time.time(), body)
            db.execute("insert into responses values (?, ?, ?, ?, ?)", row)
            db.executemany(
                "insert into items values (?, ?, ?, ?, ?, ?)",
                [
                    (id, place, is_given, owner, item["id"], msgspec.json.encode(item))
                    for place, (item, is_given) in enumerate(items)
                ],
            )

    def response(self, owner: str, id: str) -> dict[str, Any] | None:
        with self._open() as db:
            row = db.execute("select body from responses where owner = ? and id = ?", (owner, id)).fetchone()
        return decoded(row[0]) if row else None

    def describe(self, owner: str, id: str, metadata: dict[str, str]) -> dict[str, Any] | None:
        """What is stored under that id, with other metadata."""
        with self._open() as db:
            row = db.execute("select body from responses where owner = ? and id = ?", (owner, id)).fetchone()
            if row is None:
                return None
            changed = decoded(row[0]) | {"metadata": metadata}
            db.execute("update responses set body = ? where id = ?", (msgspec.json.encode(changed), id))
        return changed

    def listed(
        self, owner: str, fits: Callable[[dict[str, Any]], bool], after: str | None, most: int, newest_first: bool
    ) -> list[dict[str, Any]] | None:
        """Those of an owner that fit and come after the one of that id; None where there is none of that id."""
        way, found = "desc" if newest_first else "asc", list[dict[str, Any]]()
        query = f"select id, body from responses where owner = ? order by at {way}, rowid {way}"
        with self._open() as db:
            rows = db.execute(query, (owner,))
            if after is not None and not any(id == after for id, _ in rows):
                return None
            for _, body in rows:
                if fits(one := decoded(body)):
                    found.append(one)
                    if len(found) == most:
                        break
        return found

    def delete(self, owner: str, id: str) -> bool:
        """Whether there was one."""
        with self._open() as db:
            return db.execute("delete from responses where owner = ? and id = ?", (owner, id)).rowcount > 0

    def given(self, owner: str, id: str) -> list[Item]:
        """The items a response was asked with."""
        with self._open() as db:
            query = "select body from items where owner = ? and response = ? and given order by place"
            rows = db.execute(query, (owner, id)).fetchall()
        return [decoded(body) for (body,) in rows]

    def items(self, owner: str, ids: Iterable[str]) -> dict[str, Item]:
        """Those there are of these ids; the latest, where several have one."""
        query = "select body from items where owner = ? and id = ? order by rowid desc limit 1"
        with self._open() as db:
            rows = {id: db.execute(query, (owner, id)).fetchone() for id in ids}
        return {id: decoded(row[0]) for id, row in rows.items() if row}

    def conversation(self, owner: str, id: str) -> list[Item] | None:
        """All items up to and with a response's own, oldest first; None if it or one before it is gone."""
        turns: list[list[Item]] = []
        with self._open() as db:
            before: str | None = id
            while before is not None:
                query = "select previous from responses where owner = ? and id = ?"
                row = db.execute(query, (owner, before)).fetchone()
                if row is None:
                    return None
                rows = db.execute("select body from items where response = ? order by place", (before,)).fetchall()
                turns.append([decoded(body) for (body,) in rows])
                before = row[0]
        return flat(reversed(turns))

    # --- conversations, whose time begins anew with each thing said ---

    def begin_conversation(self, owner: str, id: str, metadata: dict[str, str], items: list[Item]) -> None:
        """Raises Refused where the owner has as many as may be."""
        now = time.time()
        with self._open() as db:
            (held,) = db.execute("select count(*) from conversations where owner = ?", (owner,)).fetchone()
            if held >= CONVERSATIONS:
                raise Refused(f"{held} conversations are kept already; delete some", None, "too_many_conversations")
            row = (id, owner, now, int(now), msgspec.json.encode(metadata))
            db.execute("insert into conversations (id, owner, at, created, metadata) values (?, ?, ?, ?, ?)", row)
            self._check(db, owner, id, items, "items")
            self._add(db, id, items)

    def conversation_fields(self, owner: str, id: str) -> dict[str, Any] | None:
        with self._open() as db:
            query = "select created, metadata from conversations where owner = ? and id = ?"
            row = db.execute(query, (owner, id)).fetchone()
        return {"created_at": row[0], "metadata": decoded(row[1])} if row else None

    def describe_conversation(self, owner: str, id: str, metadata: dict[str, str]) -> bool:
        with self._open() as db:
            query = "update conversations set metadata = ? where owner = ? and id = ?"
            return db.execute(query, (msgspec.json.encode(metadata), owner, id)).rowcount > 0

    def end_conversation(self, owner: str, id: str) -> bool:
        with self._open() as db:
            return db.execute("delete from conversations where owner = ? and id = ?", (owner, id)).rowcount > 0

    def said(self, owner: str, id: str) -> list[Item] | None:
        """All items of a conversation, the oldest first; None where there is none of that id."""
        with self._open() as db:
            if not self._is_of(db, owner, id):
                return None
            rows = db.execute("select body from said where conversation = ? order by place", (id,)).fetchall()
        return [decoded(body) for (body,) in rows]

    def said_page(
        self, owner: str, id: str, most: int, newest_first: bool, after: str | None
    ) -> tuple[list[Item], bool] | None:
        """As many items that come after that one, and whether there are more; None where there is no conversation of
        that id. Raises Refused where it has no such item."""
        way, than = ("desc", "<") if newest_first else ("asc", ">")
        with self._open() as db:
            if not self._is_of(db, owner, id):
                return None
            query, values = "select body from said where conversation = ?", list[Any]([id])
            if after is not None:
                found = db.execute("select place from said where conversation = ? and id = ?", (id, after)).fetchone()
                if not found:
                    raise no_such_item(after, "conversation")
                query, values = f"{query} and place {than} ?", [id, found[0]]
            rows = db.execute(f"{query} order by place {way} limit ?", [*values, most + 1]).fetchall()
        return [decoded(body) for (body,) in rows[:most]], len(rows) > most

    def said_item(self, owner: str, id: str, item: str) -> Item | None:
        with self._open() as db:
            query = "select body from said where conversation = ? and id = ?"
            row = db.execute(query, (id, item)).fetchone() if self._is_of(db, owner, id) else None
        return decoded(row[0]) if row else None

    def check_room(self, owner: str, id: str, items: list[Item]) -> None:
        """Raises Refused where these are not to be added to a conversation."""
        with self._open() as db:
            if self._is_of(db, owner, id):
                self._check(db, owner, id, items, "input")

    def say(self, owner: str, id: str, items: list[Item], answered: bool = False) -> bool:
        """Adds to a conversation; whether it is there. Raises Refused where the items are not to be added, but for
        those of a response, which was let in with `check_room`."""
        with self._open() as db:
            query = "update conversations set at = ? where owner = ? and id = ?"
            found = db.execute(query, (time.time(), owner, id)).rowcount > 0
            if found:
                if not answered:
                    self._check(db, owner, id, items, "items")
                self._add(db, id, items)
            return found

    def unsay(self, owner: str, id: str, item: str) -> bool:
        """Takes an item out of a conversation; whether it was there."""
        query = "delete from said where id = ? and conversation = ? returning length(body)"
        with self._open() as db:
            rows = db.execute(query, (item, id)).fetchall() if self._is_of(db, owner, id) else []
            self._count(db, id, -len(rows), -sum(size for (size,) in rows))
            return bool(rows)

    def _is_of(self, db: sqlite3.Connection, owner: str, id: str) -> bool:
        return bool(db.execute("select 1 from conversations where owner = ? and id = ?", (owner, id)).fetchone())

    def _check(self, db: sqlite3.Connection, owner: str, id: str, items: list[Item], where: str) -> None:
        held, size = db.execute("select items, bytes from conversations where id = ?", (id,)).fetchone()
        added = sum(len(msgspec.json.encode(item)) for item in items)
        held, size = held + len(items), size + added
        if held > CONVERSATION_ITEMS or size > CONVERSATION_BYTES:
            most = f"{CONVERSATION_ITEMS} items and {CONVERSATION_BYTES} bytes"
            message = f"'{where}': a conversation takes {most} at most, and would have {held} items of {size} bytes"
            raise Refused(message, where, "conversation_full")
        (all_bytes,) = db.execute("select sum(bytes) from conversations where owner = ?", (owner,)).fetchone()
        if all_bytes + added > CONVERSATIONS_BYTES:
            message = f"all conversations have {all_bytes} bytes; {CONVERSATIONS_BYTES} are kept at most: delete some"
            raise Refused(message, where, "too_many_conversations")
        ids = set[str]()
        for item in items:
            one = item["id"]
            if one in ids or db.execute("select 1 from said where conversation = ? and id = ?", (id, one)).fetchone():
                message = f"'{where}': an item with the id '{one}' is in this conversation already; send each once"
                raise Refused(message, where, "duplicate_item")
            ids.add(one)

    def _add(self, db: sqlite3.Connection, id: str, items: list[Item]) -> None:
        """An item whose id is there already is: of two responses at a time, one has said it."""
        query, added, size = "insert or ignore into said (conversation, id, body) values (?, ?, ?)", 0, 0
        for item in items:
            body = msgspec.json.encode(item)
            if db.execute(query, (id, item["id"], body)).rowcount > 0:
                added, size = added + 1, size + len(body)
        self._count(db, id, added, size)

    def _count(self, db: sqlite3.Connection, id: str, items: int, size: int) -> None:
        query = "update conversations set items = items + ?, bytes = bytes + ? where id = ?"
        db.execute(query, (items, size, id))


def decoded(body: bytes) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.json.decode(body)
    return fields


def flat(turns: Iterable[list[Item]]) -> list[Item]:
    return [item for turn in turns for item in turn]
