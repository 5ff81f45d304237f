"""What was learnt on this host and outlives the server: measurements, failures, what models say. One SQLite file."""

import contextlib
import logging
import sqlite3
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from enginehouse.runtimes.pool.routing import Figures, Parked

log = logging.getLogger("enginehouse.records")
FILE = "records-1.sqlite"  # the number goes up with every change to the tables
DEATHS, WINDOW_SECONDS = 3, 600.0  # a candidate that dies so often within so long is parked
CLOCK_SECONDS = 60.0  # that a clock may be set back as it pleases
PARKED_SECONDS = {"build": 3600.0, "load": 600.0, "smoke": 3600.0, "death": 600.0}  # by what failed

SCHEMA = """
create table if not exists measurements (
    source text, candidate text, slots integer, host text, artifact text, figures blob, at real,
    primary key (source, candidate, slots, host));
create table if not exists failures (
    source text, candidate text, host text, kind text, message text, at real);
create table if not exists families (family text primary key, shortfall text);
create table if not exists memory (
    source text, candidate text, context integer, slots integer, host text, peak integer,
    primary key (source, candidate, context, slots, host));
create table if not exists sayings (source text primary key, tokens blob);
"""


class Measurement(msgspec.Struct, frozen=True):
    figures: Figures
    artifact: str  # key of what was loaded
    at: float  # seconds since the epoch


class Records:
    """Rows belong to a source's fingerprint and a host's: what was learnt of other bytes or versions does not count."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def _run(self, statement: str, values: tuple[object, ...]) -> list[tuple[Any, ...]]:
        """Rows of a query. A file that cannot be used costs what it would remember, never a request."""
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._file.touch(mode=0o600)  # it holds what engines wrote when they died
            with contextlib.closing(sqlite3.connect(self._file, timeout=10)) as db, db:
                db.executescript(SCHEMA)
                return db.execute(statement, values).fetchall()
        except (sqlite3.Error, OSError) as error:
            log.warning("'%s' cannot be used, so what is learnt now is not kept: %s", self._file, error)
            return []

    def measured(self, source: str, candidate: str, slots: int, host: str, artifact: str, figures: Figures) -> None:
        row = (source, candidate, slots, host, artifact, msgspec.json.encode(figures), time.time())
        self._run("insert or replace into measurements values (?, ?, ?, ?, ?, ?, ?)", row)

    def measurements(self, source: str, slots: int, host: str) -> dict[str, Measurement]:
        """By candidate key."""
        query = "select candidate, figures, artifact, at from measurements where source = ? and slots = ? and host = ?"
        rows = self._run(query, (source, slots, host))
        return {key: Measurement(msgspec.json.decode(blob, type=Figures), made, at) for key, blob, made, at in rows}

    def record_memory(self, source: str, candidate: str, context: int, slots: int, host: str, peak: int) -> None:
        row = (source, candidate, context, slots, host, peak)
        self._run("insert or replace into memory values (?, ?, ?, ?, ?, ?)", row)

    def memory(self, source: str, candidate: str, context: int, slots: int, host: str) -> int:
        """Bytes that it took at its peak when it was last loaded, 0 where it never was."""
        query = "select peak from memory where (source, candidate, context, slots, host) = (?, ?, ?, ?, ?)"
        rows = self._run(query, (source, candidate, context, slots, host))
        return int(rows[0][0]) if rows else 0

    def failed(self, source: str, candidate: str, host: str, kind: str, message: str) -> None:
        self._run("delete from failures where at < ?", (time.time() - max(PARKED_SECONDS.values()),))
        row = (source, candidate, host, kind, message, time.time())
        self._run("insert into failures values (?, ?, ?, ?, ?, ?)", row)

    def parked(self, source: str, host: str) -> dict[str, Parked]:
        """Candidates that may not be tried now."""
        query = "select candidate, kind, message, at from failures where source = ? and host = ? order by at"
        now, out = time.time(), dict[str, Parked]()
        deaths: Counter[str] = Counter()
        for candidate, kind, message, at in self._run(query, (source, host)):
            if at > now + CLOCK_SECONDS:
                continue  # the clock was set back: nobody knows when that was
            until = at + PARKED_SECONDS[kind]
            deaths[candidate] += kind == "death" and at > now - WINDOW_SECONDS
            if until > now and (kind != "death" or deaths[candidate] >= DEATHS):
                when = time.strftime("%H:%M:%S", time.localtime(until))
                often = f"died {deaths[candidate]} times" if kind == "death" else f"{kind} failed"
                out[candidate] = Parked(f"parked until {when}: {often}", message)
        return out

    def family(self, family: str) -> str | None:
        """By how much the conversion of an architecture misses its source, "" where it does not; None: never tried."""
        rows = self._run("select shortfall from families where family = ?", (family,))
        return rows[0][0] if rows else None

    def record_family(self, family: str, shortfall: str) -> None:
        self._run("insert or replace into families values (?, ?)", (family, shortfall))

    def smoke_answer(self, source: str) -> list[int] | None:
        """The tokens that the first engine answered the smoke test with, if it was sure of them."""
        rows = self._run("select tokens from sayings where source = ?", (source,))
        return msgspec.json.decode(rows[0][0], type=list[int]) if rows else None

    def record_smoke_answer(self, source: str, tokens: list[int]) -> None:
        self._run("insert or ignore into sayings values (?, ?)", (source, msgspec.json.encode(tokens)))
