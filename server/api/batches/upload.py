"""A form with a file, written to the disk as it comes."""

import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec
from litestar import Request
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from multipart import MultipartError, MultipartSegment, PushMultipartParser

from enginehouse.runtimes.errors import Refused
from enginehouse.server.api.batches.database import Database
from enginehouse.server.api.batches.file_store import FileStore
from enginehouse.server.api.batches.types import MOST_EXPIRY, ExpiresAfter, FileObject
from enginehouse.server.limits import FIELD_BYTES, FILE_BYTES

MULTIPART = "multipart/form-data"
PARTS = 16
FORM_BYTES = FILE_BYTES + (1 << 20)  # with all around the file
PIECE_BYTES = 1 << 20  # that are written at a time
LONGEST_NAME = 256
EXPIRY = "expires_after"


class Form:
    """What has come of it."""

    def __init__(self) -> None:
        self.fields: dict[str, str] = {}
        self.name: str | None = None  # of the file
        self._field: str | None = None  # that comes now; None: the file
        self._text = bytearray()

    def begin(self, part: MultipartSegment) -> None:
        if part.name == "file":
            if self.name is not None:
                raise Refused("there are two files; send one", "file", "invalid_value")
            self._field, self.name = None, (part.filename or "file")[:LONGEST_NAME]
        else:
            self._field = part.name
            self._text.clear()

    def take(self, piece: bytes) -> bytes:
        """What of it is the file's."""
        if self._field is None:
            return piece
        self._text += piece
        if len(self._text) > FIELD_BYTES:
            raise Refused(f"'{self._field}' has more than {FIELD_BYTES} bytes", self._field, "invalid_value")
        return b""

    def end(self) -> None:
        if self._field is not None:
            self.fields[self._field] = self._text.decode("utf-8", "replace")
            self._field = None

    @property
    def expiry_seconds(self) -> int:
        """Of all fields, once all are there; raises Refused for one that is not known."""
        for name in self.fields:
            if name not in ("purpose", f"{EXPIRY}[anchor]", f"{EXPIRY}[seconds]"):
                raise Refused(f"unknown field '{name}'", name, "unknown_parameter")
        self.check_purpose()
        sent = {
            key: self.fields[f"{EXPIRY}[{key}]"] for key in ("anchor", "seconds") if f"{EXPIRY}[{key}]" in self.fields
        }
        if not sent:
            return MOST_EXPIRY
        try:
            return msgspec.convert(sent, ExpiresAfter, strict=False).seconds
        except msgspec.ValidationError as error:
            raise Refused(f"'{EXPIRY}': {error}", EXPIRY, "invalid_value") from error

    def check_purpose(self) -> None:
        purpose = self.fields.get("purpose")
        if purpose != "batch":
            other = f"not '{purpose}'" if purpose is not None else "and is missing"
            made = "; files of purpose 'batch_output' are made by batches" if purpose == "batch_output" else ""
            raise Refused(f"'purpose' may be 'batch' here, {other}{made}", "purpose", "invalid_value")


async def upload(request: Request[Any, Any, State], owner: str, database: Database, store: FileStore) -> FileObject:
    """The file, once all of it is on the disk; there is nothing of it otherwise. Raises Refused and StorageFull."""
    kind, options = request.content_type
    if kind != MULTIPART or not options.get("boundary"):
        raise HTTPException(detail=f"content-type '{kind}' is not read here; send {MULTIPART}", status_code=415)
    announced = request.content_length
    if announced is not None and announced > FORM_BYTES:
        raise too_large()
    form = Form()
    # A name is known when its part comes, and how long it is to be kept perhaps only after it.
    id = await database.in_thread(
        store.begin, owner, "file", "batch", MOST_EXPIRY, min(announced or FILE_BYTES, FILE_BYTES)
    )
    try:
        size = 0
        async with aclosing(pieces(request, form, options["boundary"])) as coming:
            async for piece in coming:
                size += len(piece)
                if size > FILE_BYTES:
                    raise too_large()
                await database.in_thread(append, store.path(id), piece)
        if form.name is None:
            raise Refused("'file' is missing", "file", "invalid_value")
        await database.in_thread(store.describe, id, form.name, form.expiry_seconds)
        if not size:
            raise Refused("'file' is empty", "file", "invalid_value")
        return await database.in_thread(store.publish, id)
    except BaseException:
        await database.in_thread(store.drop, id)
        raise


async def pieces(request: Request[Any, Any, State], form: Form, boundary: str) -> AsyncGenerator[bytes, None]:
    """Of the file, as large as they are to be written."""
    limits = {"max_segment_count": PARTS, "max_header_size": 8192}
    whole = bytearray()
    try:
        with PushMultipartParser(boundary, **limits) as parser:
            async with aclosing(request.stream()) as stream:
                async for chunk in stream:
                    if not chunk:
                        continue
                    for event in parser.parse(chunk):
                        if isinstance(event, MultipartSegment):
                            form.begin(event)
                        elif event is None:
                            form.end()
                            if form.fields.get("purpose"):
                                form.check_purpose()  # before all of a large file has come
                        else:
                            whole += form.take(bytes(event))
                    if len(whole) >= PIECE_BYTES:
                        yield bytes(whole)
                        whole.clear()
    except MultipartError as error:
        raise Refused(f"the form cannot be read: {error}", None, "invalid_value") from error
    if whole:
        yield bytes(whole)


def append(path: Path, piece: bytes) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        rest = memoryview(piece)
        while rest:
            rest = rest[os.write(file, rest) :]
    finally:
        os.close(file)


def too_large() -> HTTPException:
    return HTTPException(detail=f"a file takes {FILE_BYTES} bytes at most", status_code=413)
