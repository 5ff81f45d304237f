"""/v1/batches: made of a file, looked up, listed, cancelled."""

import re
import secrets
import time
from typing import Any

from litestar import Request, get, post
from litestar.datastructures import State

from enginehouse.runtimes.errors import Refused
from enginehouse.server import body
from enginehouse.server.api.batches.batches import Batches
from enginehouse.server.api.batches.files import in_thread
from enginehouse.server.api.batches.types import (
    MOST_EXPIRY,
    Batch,
    BatchList,
    BatchRequest,
    StoredBatch,
    changed,
)
from enginehouse.server.api.pages import check_limit
from enginehouse.server.auth import owner_of
from enginehouse.server.errors import UnknownBatch
from enginehouse.server.openapi import Body, described

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600}
FOUND = (400, 401, 404, 500, 503)


@post("/v1/batches", status_code=200, operation_class=described(Batch, Body(BatchRequest)))
async def create_batch(request: Request[Any, Any, State], state: State) -> Batch:
    """The lines of a file are asked as there is time, and their answers become a file."""
    asked = await body.read_as(request, lambda sent: body.parse(sent, BatchRequest))
    batches: Batches = state.batches
    owner, now = owner_of(request), int(time.time())
    window = seconds(asked.completion_window)
    if not 1 <= window <= MOST_EXPIRY:
        raise Refused("'completion_window' goes from 1s to 30d", "completion_window", "invalid_value")
    if await in_thread(batches, batches.files.get, owner, asked.input_file_id) is None:
        raise Refused(f"'input_file_id': there is no file '{asked.input_file_id}'", "input_file_id", "invalid_value")
    id = f"batch_{secrets.token_hex(16)}"
    kept = asked.output_expires_after.seconds if asked.output_expires_after else MOST_EXPIRY
    batch = Batch(id, asked.endpoint, asked.input_file_id, asked.completion_window, now, now + window, asked.metadata)

    def create() -> None:
        names = [f"{id}_output.jsonl", f"{id}_error.jsonl"]
        output, errors = (batches.files.begin(owner, name, "batch_output", kept, 0) for name in names)
        try:
            batches.store.create(StoredBatch(batch, owner, output, errors))
        except BaseException:
            for file in (output, errors):
                batches.files.drop(file)
            raise

    await in_thread(batches, create)
    batches.look(id)
    return batch


@get("/v1/batches", operation_class=described(BatchList, failures=(400, 401, 500, 503)))
async def list_batches(
    request: Request[Any, Any, State], state: State, limit: int = 20, after: str | None = None
) -> BatchList:
    """The newest first, page by page."""
    check_limit(limit)
    batches: Batches = state.batches
    found = await in_thread(batches, batches.store.listed, owner_of(request), after, limit + 1)
    if found is None:
        raise Refused(f"'after': there is no batch '{after}'", "after", "invalid_value")
    return BatchList(
        found[:limit], found[0].id if found else None, found[:limit][-1].id if found else None, len(found) > limit
    )


@get("/v1/batches/{id:str}", operation_class=described(Batch, failures=FOUND))
async def get_batch(request: Request[Any, Any, State], state: State, id: str) -> Batch:
    """How far it is."""
    return await owned(state.batches, owner_of(request), id)


@post("/v1/batches/{id:str}/cancel", status_code=200, operation_class=described(Batch, failures=FOUND))
async def cancel_batch(request: Request[Any, Any, State], state: State, id: str) -> Batch:
    """No further line of it is asked; what was answered stays."""
    batches: Batches = state.batches
    await owned(batches, owner_of(request), id)

    def cancel(stored: StoredBatch) -> StoredBatch | None:
        if stored.batch.status == "cancelling":
            return None
        if stored.batch.status not in ("validating", "in_progress") or stored.ends_as:
            message = f"Cannot cancel a batch with status '{stored.batch.status}'."
            raise Refused(message, None, "invalid_value")
        return changed(stored, status="cancelling", cancelling_at=int(time.time()))

    stored = await in_thread(batches, batches.store.change, id, cancel)
    batches.look(id)
    return stored.batch


async def owned(batches: Batches, owner: str, id: str) -> Batch:
    batch = await in_thread(batches, batches.store.owned, owner, id)
    if batch is None:
        raise UnknownBatch(id)
    return batch


def seconds(window: str) -> int:
    match = re.fullmatch(r"([0-9]+)([smhd])", window)
    assert match
    return int(match[1]) * UNITS[match[2]]


ROUTES = [create_batch, list_batches, get_batch, cancel_batch]
