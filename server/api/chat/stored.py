"""Chat completions that were asked with `store: true`: kept, listed, looked up, changed, deleted."""

import logging
import re
import sqlite3
from typing import Any, Literal

import msgspec
from litestar import Request, delete, get, post
from litestar.datastructures import State

from enginehouse.runtimes.errors import Refused
from enginehouse.server import body
from enginehouse.server.api.chat.protocol import ChatRequest, Message, metadata_of
from enginehouse.server.api.pages import check_limit, listed, page
from enginehouse.server.api.store import ResponseStore
from enginehouse.server.auth import owner_of
from enginehouse.server.body import Metadata
from enginehouse.server.errors import UnknownCompletion
from enginehouse.server.openapi import JSON, Body, described

log = logging.getLogger("enginehouse.server")
Fields = dict[str, Any]
WANTED = re.compile(r"metadata\[(.+)\]")
FOUND, LISTED = described(JSON, failures=(401, 404, 500)), described(JSON, failures=(400, 401, 404, 500))


class CompletionUpdate(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    metadata: Metadata


def owner(request: Request[Any, Any, State]) -> str:
    """In the store that responses lie in, which are to be had by their own routes alone."""
    return f"{owner_of(request)}/chat"


async def save(store: ResponseStore, owner: str, request: ChatRequest, completion: Fields) -> None:
    """An answer that was made is not lost for a full disk."""
    id = completion["id"]
    given = [message_of(message, f"{id}-{index}") for index, message in enumerate(request.messages)]
    stored = completion | {"metadata": metadata_of(request), "previous_response_id": None, "output": []}
    try:
        await store.in_thread(store.save, owner, stored, given)
    except (sqlite3.Error, OSError) as error:
        log.warning("'%s' is not stored: %s", id, error)


def message_of(message: Message, id: str) -> Fields:
    fields: Fields = msgspec.to_builtins(message)
    return {"id": id, "content": None} | fields


@get("/v1/chat/completions", operation_class=described(JSON, failures=(400, 401, 500)))
async def list_completions(
    request: Request[Any, Any, State],
    state: State,
    limit: int = 20,
    order: Literal["asc", "desc"] = "asc",
    after: str | None = None,
    model: str | None = None,
) -> Fields:
    """Those that are stored, of a model and with some metadata (`metadata[key]=value`) if that is asked for."""
    check_limit(limit)
    sent = ((WANTED.fullmatch(name), value) for name, value in request.query_params.items())
    wanted = {match[1]: value for match, value in sent if match}

    def fits(completion: Fields) -> bool:
        metadata = completion["metadata"]
        same = all(metadata.get(key) == value for key, value in wanted.items())
        return same and model in (None, completion["model"])

    store: ResponseStore = state.responses
    found = await store.in_thread(store.listed, owner(request), fits, after, limit + 1, order == "desc")
    if found is None:
        raise Refused(f"'after': there is no stored chat completion '{after}'", "after", "invalid_value")
    return listed([shown(completion) for completion in found[:limit]], len(found) > limit)


@get("/v1/chat/completions/{id:str}", operation_class=FOUND)
async def get_completion(request: Request[Any, Any, State], state: State, id: str) -> Fields:
    """One that was stored."""
    return shown(await found(state.responses, owner(request), id))


@post("/v1/chat/completions/{id:str}", status_code=200, operation_class=described(JSON, Body(CompletionUpdate)))
async def update_completion(request: Request[Any, Any, State], state: State, id: str) -> Fields:
    """Gives it other metadata."""
    asked = await body.read_as(request, lambda sent: body.parse(sent, CompletionUpdate))
    store: ResponseStore = state.responses
    changed = await store.in_thread(store.describe, owner(request), id, asked.metadata)
    if changed is None:
        raise UnknownCompletion(id)
    return shown(changed)


@get("/v1/chat/completions/{id:str}/messages", operation_class=LISTED)
async def list_messages(
    request: Request[Any, Any, State],
    state: State,
    id: str,
    limit: int = 20,
    order: Literal["asc", "desc"] = "asc",
    after: str | None = None,
) -> Fields:
    """The messages that it was asked with."""
    check_limit(limit)
    await found(state.responses, owner(request), id)
    messages = await state.responses.in_thread(state.responses.given, owner(request), id)
    return page(messages, limit, order, after, "chat completion")


@delete("/v1/chat/completions/{id:str}", status_code=200, operation_class=FOUND)
async def delete_completion(request: Request[Any, Any, State], state: State, id: str) -> Fields:
    """Forgets it."""
    if not await state.responses.in_thread(state.responses.delete, owner(request), id):
        raise UnknownCompletion(id)
    return {"id": id, "object": "chat.completion.deleted", "deleted": True}


async def found(store: ResponseStore, owner: str, id: str) -> Fields:
    completion = await store.in_thread(store.response, owner, id)
    if completion is None:
        raise UnknownCompletion(id)
    return completion


def shown(completion: Fields) -> Fields:
    """Without what the store wants of it."""
    return {key: value for key, value in completion.items() if key not in ("previous_response_id", "output")}


ROUTES = [list_completions, get_completion, update_completion, list_messages, delete_completion]
