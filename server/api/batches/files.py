"""/v1/files: uploaded, listed, looked up, read, deleted."""

import sqlite3
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any, BinaryIO, Literal, ParamSpec, TypeVar

from litestar import Request, delete, get, post
from litestar.connection import ASGIConnection
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.handlers import BaseRouteHandler
from litestar.response import Stream

from enginehouse.optimize import shortage
from enginehouse.runtimes.errors import Refused, Unavailable
from enginehouse.server.api.batches.batches import Batches
from enginehouse.server.api.batches.file_store import StorageFull
from enginehouse.server.api.batches.types import DeletedFile, FileList, FileObject, Upload
from enginehouse.server.api.batches.upload import FORM_BYTES, MULTIPART, upload
from enginehouse.server.api.pages import check_limit
from enginehouse.server.auth import owner_of
from enginehouse.server.errors import UnknownFile
from enginehouse.server.openapi import Body, described

P = ParamSpec("P")
T = TypeVar("T")
MOST = 10_000  # in one page
PIECE_BYTES = 256 * 1024
FOUND = (400, 401, 404, 500, 503)
CONTENT = "application/octet-stream"


def no_anthropic(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
    """Anthropic's files have the same path, and are something else."""
    if "anthropic-version" in connection.headers:
        raise HTTPException(status_code=404)


@post(
    "/v1/files",
    status_code=200,
    request_max_body_size=FORM_BYTES,
    guards=[no_anthropic],
    operation_class=described(FileObject, Body(Upload, media_type=MULTIPART)),
)
async def create_file(request: Request[Any, Any, State], state: State) -> FileObject:
    """A file of requests, one on each line, for a batch."""
    batches: Batches = state.batches
    try:
        return await upload(request, owner_of(request), batches.database, batches.files)
    except (StorageFull, sqlite3.Error, OSError) as error:
        raise unusable(error) from error


@get("/v1/files", guards=[no_anthropic], operation_class=described(FileList, failures=(400, 401, 500, 503)))
async def list_files(
    request: Request[Any, Any, State],
    state: State,
    limit: int = MOST,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
    purpose: str | None = None,
) -> FileList:
    """Those of a key, page by page."""
    check_limit(limit, MOST)
    batches: Batches = state.batches
    asked = (owner_of(request), purpose, after, limit + 1, order == "desc")
    found = await in_thread(batches, batches.files.listed, *asked)
    if found is None:
        raise Refused(f"'after': there is no file '{after}'", "after", "invalid_value")
    return FileList(
        found[:limit], found[0].id if found else None, found[:limit][-1].id if found else None, len(found) > limit
    )


@get("/v1/files/{id:str}", guards=[no_anthropic], operation_class=described(FileObject, failures=FOUND))
async def get_file(request: Request[Any, Any, State], state: State, id: str) -> FileObject:
    """What is known of it."""
    return await owned(state.batches, owner_of(request), id)


@get(
    "/v1/files/{id:str}/content",
    media_type=CONTENT,
    guards=[no_anthropic],
    operation_class=described(CONTENT, failures=FOUND),
)
async def get_content(request: Request[Any, Any, State], state: State, id: str) -> Stream:
    """Its bytes."""
    batches: Batches = state.batches
    file = await owned(batches, owner_of(request), id)
    handle = await in_thread(batches, opened, batches.files.path(id))
    return Stream(pieces(batches, handle), media_type=CONTENT, headers={"content-length": str(file.bytes)})


@delete(
    "/v1/files/{id:str}",
    status_code=200,
    guards=[no_anthropic],
    operation_class=described(DeletedFile, failures=(*FOUND, 409)),
)
async def delete_file(request: Request[Any, Any, State], state: State, id: str) -> DeletedFile:
    """It is gone at once; one that a batch reads is not to be deleted."""
    batches: Batches = state.batches
    await owned(batches, owner_of(request), id)
    reading = [
        one.batch.id for one in await in_thread(batches, batches.store.unfinished) if one.batch.input_file_id == id
    ]
    if reading:
        raise HTTPException(detail=f"batch '{reading[0]}' reads '{id}' still; cancel it first", status_code=409)
    await in_thread(batches, batches.files.drop, id)
    return DeletedFile(id)


async def owned(batches: Batches, owner: str, id: str) -> FileObject:
    file = await in_thread(batches, batches.files.get, owner, id)
    if file is None:
        raise UnknownFile(id)
    return file


async def in_thread(batches: Batches, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What is done with the disk; raises Unavailable where that cannot be used."""
    try:
        return await batches.database.in_thread(work, *args, **kwargs)
    except (StorageFull, sqlite3.Error, OSError) as error:
        raise unusable(error) from error


def unusable(error: Exception) -> Exception:
    match error:
        case StorageFull():
            return Refused(str(error), "file", "storage_full")
        case OSError():
            why = shortage.describe(error, "free some room, or set cache_dir to a folder that can be written")
            return Unavailable(f"files cannot be kept: {why}", "disk_failed")
        case _:
            return Unavailable(f"files cannot be kept: {error}", "disk_failed")


def opened(path: Path) -> BinaryIO:
    return path.open("rb")


async def pieces(batches: Batches, handle: BinaryIO) -> AsyncGenerator[bytes, None]:
    with handle:
        while piece := await batches.database.in_thread(handle.read, PIECE_BYTES):
            yield piece


ROUTES = [create_file, list_files, get_file, get_content, delete_file]
