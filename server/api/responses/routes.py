"""/v1/responses: a response made, looked up, deleted; the items it was given."""

import functools
import logging
import sqlite3
from typing import Any, Literal

from litestar import Request, Response, delete, get, post
from litestar.datastructures import State

from enginehouse.runtimes.errors import Refused
from enginehouse.server import body
from enginehouse.server.api.pages import check_limit, page
from enginehouse.server.api.responses import protocol
from enginehouse.server.api.responses.render import Fields, ResponseRenderer
from enginehouse.server.api.responses.tools import toolset
from enginehouse.server.api.store import ResponseStore
from enginehouse.server.auth import owner_of
from enginehouse.server.errors import UnknownResponse
from enginehouse.server.exchange import answer
from enginehouse.server.keepalive import assigned_headers, unless_client_leaves
from enginehouse.server.openapi import JSON, Body, described

log = logging.getLogger("enginehouse.server")
LEFT_OUT = "x-enginehouse-tools-left-out"
# What this dialect calls the fields that engines refuse.
PARAMS = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
}


BODY = Body(protocol.ResponseRequest, frozenset(protocol.IGNORED), protocol.NEUTRAL)


@post("/v1/responses", status_code=200, operation_class=described(JSON, BODY, streams=True, assigned=True))
async def create_response(request: Request[Any, Any, State], state: State) -> Response[Any]:
    """A response, whole or as server-sent events; docs/api.md lists the fields."""
    asked = await body.read_as(request, protocol.read)
    history = await history_of(state.responses, owner_of(request), asked.previous_response_id)
    given = await given_items(state.responses, owner_of(request), asked.input)
    tools = toolset(asked.tools, [*history, *given])
    renderer = ResponseRenderer(asked, functools.partial(save, state.responses, owner_of(request), given), tools)
    job = protocol.to_job(asked, history, given, renderer.id, tools)
    with body.fields_named(PARAMS):
        response = await answer(request, [job], renderer)
    if tools.left_out:
        response.headers[LEFT_OUT] = ", ".join(tools.left_out)
        log.info("%s: tools that do not run here are left out: %s", job.id, response.headers[LEFT_OUT])
    return response


@post("/v1/responses/input_tokens", status_code=200, operation_class=described(JSON, BODY, assigned=True))
async def count_input_tokens(request: Request[Any, Any, State], state: State) -> Response[dict[str, Any]]:
    """How many tokens a response's input is, by the model's own template and tokenizer."""
    asked = await body.read_as(request, protocol.read)
    history = await history_of(state.responses, owner_of(request), asked.previous_response_id)
    given = await given_items(state.responses, owner_of(request), asked.input)
    prompt = protocol.to_job(asked, history, given, "count").prompt
    assigned, ids = await unless_client_leaves(request, state.pool.tokenize(asked.model, prompt))
    counted = {"object": "response.input_tokens", "input_tokens": len(ids)}
    return Response(counted, headers=assigned_headers(assigned), media_type="application/json")


@get("/v1/responses/{id:str}", operation_class=described(JSON, failures=(400, 401, 404, 500)))
async def get_response(request: Request[Any, Any, State], state: State, id: str) -> dict[str, Any]:
    """A response that was stored."""
    if request.query_params.get("stream", "").lower() == "true":
        raise Refused("'stream': a stored response is not streamed again; leave it out", "stream")
    return await found(state.responses, owner_of(request), id)


@delete("/v1/responses/{id:str}", status_code=200, operation_class=described(JSON, failures=(401, 404, 500)))
async def delete_response(request: Request[Any, Any, State], state: State, id: str) -> dict[str, Any]:
    """Forgets a response. Those that went on from it can be read, but not gone on from."""
    if not await state.responses.in_thread(state.responses.delete, owner_of(request), id):
        raise UnknownResponse(id)
    return {"id": id, "object": "response", "deleted": True}


@get("/v1/responses/{id:str}/input_items", operation_class=described(JSON, failures=(400, 401, 404, 500)))
async def list_input_items(
    request: Request[Any, Any, State],
    state: State,
    id: str,
    limit: int = 20,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
) -> dict[str, Any]:
    """The items that came with the request for a response, page by page."""
    check_limit(limit)
    await found(state.responses, owner_of(request), id)
    items = await state.responses.in_thread(state.responses.given, owner_of(request), id)
    return page(items, limit, order, after, "response")


async def found(store: ResponseStore, owner: str, id: str) -> dict[str, Any]:
    response = await store.in_thread(store.response, owner, id)
    if response is None:
        raise UnknownResponse(id)
    return response


async def history_of(store: ResponseStore, owner: str, previous: str | None) -> list[Fields]:
    if previous is None:
        return []
    history = await store.in_thread(store.conversation, owner, previous)
    if history is None:
        message = f"Previous response with id '{previous}' not found, or one before it."
        raise Refused(message, "previous_response_id", "previous_response_not_found")
    return history


async def given_items(store: ResponseStore, owner: str, input: str | list[Fields]) -> list[Fields]:
    """The input's items in full, also where only an id was sent."""
    items = protocol.items_of(input)
    referred = {item["id"] for item in items if item["type"] == "item_reference"}
    known = await store.in_thread(store.items, owner, referred) if referred else {}
    for id in referred - known.keys():
        raise Refused(f"Item with id '{id}' not found.", "input", "invalid_value")
    return [known[item["id"]] if item["id"] in referred else item for item in items]


async def save(store: ResponseStore, owner: str, given: list[Fields], response: Fields) -> Fields:
    """The response, stored if it was to be. An answer that was made is not lost for a full disk: it says it was not
    stored."""
    if not response["store"]:
        return response
    try:
        await store.in_thread(store.save, owner, response, given)
    except (sqlite3.Error, OSError) as error:
        log.warning("'%s' is not stored: %s", response["id"], error)
        return response | {"store": False}
    return response


ROUTES = [create_response, count_input_tokens, get_response, delete_response, list_input_items]
