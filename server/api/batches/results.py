"""What a batch's lines were answered: appended to two files as it comes, and found again after a kill."""

import os
from contextlib import suppress
from typing import Any, Literal

import msgspec

from enginehouse.server.api.batches.file_store import FileStore, StorageFull, sync
from enginehouse.server.api.batches.input_lines import digest
from enginehouse.server.api.batches.types import Counts, StoredBatch

AHEAD_BYTES = 1 << 20  # for which room is reserved at a time
SPARE_BYTES = 256 * 1024  # on the disk, given up where it is full: so that this can be noted
Kind = Literal["output", "errors"]


class Answered(msgspec.Struct, frozen=True):
    custom_id: str


class Results:
    """Its methods block, and are called by one thread at a time."""

    def __init__(self, store: FileStore, stored: StoredBatch) -> None:
        self._store = store
        self._ids: dict[Kind, str] = {"output": stored.output, "errors": stored.errors}
        self._sizes: dict[Kind, int] = {"output": 0, "errors": 0}
        self._reserved: dict[Kind, int] = {"output": 0, "errors": 0}
        self._answered: dict[Kind, int] = {"output": 0, "errors": 0}
        self._done: set[bytes] = set()  # digests of the lines' own ids
        self._total = 0  # lines
        self._spare = store.path(stored.output).with_suffix(".spare")

    @property
    def counts(self) -> Counts:
        return Counts(self._total, self._answered["output"], self._answered["errors"])

    def open(self, total: int) -> None:
        """Finds what was written of answers to so many lines. One that a server was killed over does not count."""
        self._total = total
        for kind, id in self._ids.items():
            self._answered[kind] = 0
            with self._store.path(id).open("ab+") as file:
                os.fchmod(file.fileno(), 0o600)
                file.seek(0)
                whole = 0
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    whole += len(line)
                    self._done.add(digest(msgspec.json.decode(line, type=Answered).custom_id))
                    self._answered[kind] += 1
                file.truncate(whole)
            self._sizes[kind] = self._reserved[kind] = whole
        if not self._spare.exists():
            self._spare.write_bytes(bytes(SPARE_BYTES))

    def has(self, custom_id: str) -> bool:
        return digest(custom_id) in self._done

    def add(self, kind: Kind, fields: dict[str, Any]) -> None:
        """Raises OSError and StorageFull, having written nothing."""
        line = msgspec.json.encode(fields) + b"\n"
        size = self._sizes[kind]
        if size + len(line) > self._reserved[kind]:
            self._reserve(kind, size + len(line))
        with self._store.path(self._ids[kind]).open("ab", buffering=0) as file:
            try:
                rest = memoryview(line)
                while rest:
                    rest = rest[file.write(rest) :]
            except OSError:
                with suppress(OSError):
                    file.truncate(size)
                raise
        self._sizes[kind] += len(line)
        self._done.add(digest(fields["custom_id"]))
        self._answered[kind] += 1

    def _reserve(self, kind: Kind, size: int) -> None:
        try:
            self._store.reserve(self._ids[kind], size + AHEAD_BYTES)
            self._reserved[kind] = size + AHEAD_BYTES
        except StorageFull:
            self._store.reserve(self._ids[kind], size)
            self._reserved[kind] = size

    def make_room(self) -> None:
        """On a disk that is full, for what is to be noted."""
        self._spare.unlink(missing_ok=True)

    def close(self) -> None:
        """All of it is on the disk then."""
        self._spare.unlink(missing_ok=True)
        for id in self._ids.values():
            if (path := self._store.path(id)).exists():
                sync(path)
        if self._spare.parent.exists():
            sync(self._spare.parent)
