"""/v1/conversations: what was said, kept under one id that responses go on from and add to."""

import secrets
from typing import Annotated, Any, Literal

import msgspec
from litestar import Request, delete, get, post
from litestar.datastructures import State

from enginehouse.server import body
from enginehouse.server.api.pages import check_limit, listed
from enginehouse.server.api.responses import protocol
from enginehouse.server.api.responses.render import Fields
from enginehouse.server.api.store import ResponseStore
from enginehouse.server.auth import owner_of
from enginehouse.server.body import Metadata
from enginehouse.server.errors import UnknownConversation
from enginehouse.server.limits import ITEMS_ADDED
from enginehouse.server.openapi import JSON, Body, described

Items = Annotated[list[dict[str, Any]], msgspec.Meta(max_length=ITEMS_ADDED)]


class ConversationRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    items: Items | None = None
    metadata: Metadata | None = None


class ItemsRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    items: Items


class MetadataRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    metadata: Metadata


FOUND = (400, 401, 404, 500)
HERE = "/v1/conversations/{id:str}"


@post("/v1/conversations", status_code=200, operation_class=described(JSON, Body(ConversationRequest)))
async def create_conversation(request: Request[Any, Any, State], state: State) -> Fields:
    """A conversation, empty or of these items."""
    asked = await body.read_as(request, lambda sent: body.parse(sent or b"{}", ConversationRequest))
    store, owner, id = state.responses, owner_of(request), f"conv_{secrets.token_hex(24)}"
    items = checked(asked.items or [])
    await store.in_thread(store.begin_conversation, owner, id, asked.metadata or {}, items)
    return await described_as(store, owner, id)


@get(HERE, operation_class=described(JSON, failures=FOUND))
async def get_conversation(request: Request[Any, Any, State], state: State, id: str) -> Fields:
    """When it was made, and its metadata."""
    return await described_as(state.responses, owner_of(request), id)


@post(HERE, status_code=200, operation_class=described(JSON, Body(MetadataRequest)))
async def update_conversation(request: Request[Any, Any, State], state: State, id: str) -> Fields:
    """Gives it other metadata."""
    asked = await body.read_as(request, lambda sent: body.parse(sent, MetadataRequest))
    store, owner = state.responses, owner_of(request)
    await store.in_thread(store.describe_conversation, owner, id, asked.metadata)
    return await described_as(store, owner, id)


@delete(HERE, status_code=200, operation_class=described(JSON, failures=FOUND))
async def delete_conversation(request: Request[Any, Any, State], state: State, id: str) -> Fields:
    """Forgets it; responses that were made in it stay."""
    store = state.responses
    if not await store.in_thread(store.end_conversation, owner_of(request), id):
        raise UnknownConversation(id)
    return {"id": id, "object": "conversation.deleted", "deleted": True}


@get(f"{HERE}/items", operation_class=described(JSON, failures=FOUND))
async def list_items(
    request: Request[Any, Any, State],
    state: State,
    id: str,
    limit: int = 20,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
) -> Fields:
    """What was said, page by page."""
    check_limit(limit)
    store, newest_first = state.responses, order == "desc"
    found = await store.in_thread(store.said_page, owner_of(request), id, limit, newest_first, after)
    if found is None:
        raise UnknownConversation(id)
    return listed(*found)


@post(f"{HERE}/items", status_code=200, operation_class=described(JSON, Body(ItemsRequest)))
async def create_items(request: Request[Any, Any, State], state: State, id: str) -> Fields:
    """Adds items at the end."""
    asked = await body.read_as(request, lambda sent: body.parse(sent, ItemsRequest))
    store, items = state.responses, checked(asked.items)
    if not await store.in_thread(store.say, owner_of(request), id, items):
        raise UnknownConversation(id)
    return listed(items, has_more=False)


@get(f"{HERE}/items/{{item:str}}", operation_class=described(JSON, failures=FOUND))
async def get_item(request: Request[Any, Any, State], state: State, id: str, item: str) -> Fields:
    """One item of it."""
    store = state.responses
    found: Fields | None = await store.in_thread(store.said_item, owner_of(request), id, item)
    if found is None:
        raise UnknownConversation(f"{id}/items/{item}")
    return found


@delete(f"{HERE}/items/{{item:str}}", status_code=200, operation_class=described(JSON, failures=FOUND))
async def delete_item(request: Request[Any, Any, State], state: State, id: str, item: str) -> Fields:
    """Takes an item out of it."""
    store, owner = state.responses, owner_of(request)
    if not await store.in_thread(store.unsay, owner, id, item):
        raise UnknownConversation(f"{id}/items/{item}")
    return await described_as(store, owner, id)


def checked(items: list[Fields]) -> list[Fields]:
    """In full, and of kinds that a response can go on from."""
    whole = protocol.items_of(items)
    body.convert({"input": whole}, protocol.Items, protocol.check_kinds)
    return whole


async def said(store: ResponseStore, owner: str, id: str) -> list[Fields]:
    items = await store.in_thread(store.said, owner, id)
    if items is None:
        raise UnknownConversation(id)
    return items


async def described_as(store: ResponseStore, owner: str, id: str) -> Fields:
    fields = await store.in_thread(store.conversation_fields, owner, id)
    if fields is None:
        raise UnknownConversation(id)
    return {"id": id, "object": "conversation", **fields}


ROUTES = [
    create_conversation,
    get_conversation,
    update_conversation,
    delete_conversation,
    list_items,
    create_items,
    get_item,
    delete_item,
]
