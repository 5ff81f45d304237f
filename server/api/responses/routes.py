"""/v1/responses: a response made, looked up, deleted; the items it was given."""

import functools
import logging
import sqlite3
from typing import Any, Literal

import msgspec
from litestar import Request, Response, delete, get, post
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.response import Stream

from enginehouse.config.schema import DEFAULT_CONTEXT
from enginehouse.runtimes.contract import Chat, Job
from enginehouse.runtimes.errors import Refused
from enginehouse.runtimes.pool.pool import Pool
from enginehouse.server import body, rate_limits
from enginehouse.server.api.pages import check_limit, page
from enginehouse.server.api.responses import compaction, protocol
from enginehouse.server.api.responses.background import Running
from enginehouse.server.api.responses.chain import Chain, chain_of, size_of
from enginehouse.server.api.responses.compaction import CompactRequest
from enginehouse.server.api.responses.conversations import said
from enginehouse.server.api.responses.render import Fields, ResponseRenderer
from enginehouse.server.api.responses.tools import toolset
from enginehouse.server.api.responses.truncation import fitted
from enginehouse.server.api.responses.websocket import UPGRADE_REQUIRED
from enginehouse.server.api.store import ResponseStore
from enginehouse.server.auth import owner_of
from enginehouse.server.errors import UnknownResponse
from enginehouse.server.exchange import answer, answered, unattended
from enginehouse.server.keepalive import assigned_headers, unless_client_leaves
from enginehouse.server.openapi import JSON, Body, described
from enginehouse.server.sse import EVENTS

log = logging.getLogger("enginehouse.server")
LEFT_OUT = "x-enginehouse-tools-left-out"
TURNS_LEFT_OUT = "x-enginehouse-turns-left-out"
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
    chain = chain_of(request.scope)
    history = await history_of(state.responses, owner_of(request), asked, chain)
    given = await given_items(state.responses, owner_of(request), asked.input)
    if conversation := protocol.conversation_id(asked):
        await state.responses.in_thread(state.responses.check_room, owner_of(request), conversation, given)
    tools = toolset(asked.tools, [*history, *given])

    async def keep(response: Fields) -> Fields:
        stored, new = await save(state.responses, owner_of(request), given, response), [*given, *response["output"]]
        if chain and response["status"] in ("completed", "incomplete"):
            chain.keep(response["id"], history, new, await state.responses.in_thread(size_of, new))
        return stored

    renderer = ResponseRenderer(asked, keep, tools)
    job = protocol.to_job(asked, history, given, renderer.id, tools)
    left_out = None
    if asked.truncation == "auto":
        job, left_out = await unless_client_leaves(request, shortened(state.pool, job))
    with body.fields_named(PARAMS):
        if asked.background:
            parts = unattended(request, [job], renderer)
            hold = functools.partial(rate_limits.hold, request.scope)
            running = state.background.begin(owner_of(request), renderer, parts, hold)
            response = listening(running, -1) if asked.stream else Response(running.response)
        else:
            response = await answer(request, [job], renderer)
    if left_out:
        response.headers[TURNS_LEFT_OUT] = left_out
        log.info("%s: of the conversation, %s turns are left out", job.id, left_out)
    if tools.left_out:
        response.headers[LEFT_OUT] = ", ".join(tools.left_out)
        log.info("%s: tools that do not run here are left out: %s", job.id, response.headers[LEFT_OUT])
    return response


@post("/v1/responses/compact", status_code=200, operation_class=described(JSON, Body(CompactRequest), assigned=True))
async def compact_response(request: Request[Any, Any, State], state: State) -> Response[dict[str, Any]]:
    """A conversation as one item, to be sent in its place."""
    asked = await body.read_as(request, lambda sent: body.parse(sent, CompactRequest))
    history = await history_of(state.responses, owner_of(request), asked)
    given = await given_items(state.responses, owner_of(request), asked.input or [])
    job = compaction.to_job(asked, history, given)
    with body.fields_named(PARAMS):
        fitting, left_out = await unless_client_leaves(request, shortened(state.pool, job))
        if compaction.has_turns(fitting):
            job = fitting
        answer = await answered(request, job)
    assert answer.assigned
    headers = assigned_headers(answer.assigned) | ({TURNS_LEFT_OUT: left_out} if left_out else {})
    return Response(compaction.compacted(job.id, answer), headers=headers)


@post("/v1/responses/input_tokens", status_code=200, operation_class=described(JSON, BODY, assigned=True))
async def count_input_tokens(request: Request[Any, Any, State], state: State) -> Response[dict[str, Any]]:
    """How many tokens a response's input is, by the model's own template and tokenizer."""
    asked = await body.read_as(request, protocol.read)
    history = await history_of(state.responses, owner_of(request), asked)
    given = await given_items(state.responses, owner_of(request), asked.input)
    prompt = protocol.to_job(asked, history, given, "count").prompt
    assigned, ids = await unless_client_leaves(request, state.pool.tokenize(asked.model, prompt))
    counted = {"object": "response.input_tokens", "input_tokens": len(ids)}
    return Response(counted, headers=assigned_headers(assigned), media_type="application/json")


@get("/v1/responses", include_in_schema=False)
async def connect_to_responses() -> None:
    """What a GET is told that did not become a WebSocket; see websocket.py."""
    message = "GET here opens a WebSocket: send 'Upgrade: websocket', or POST what you ask"
    raise HTTPException(detail=message, status_code=UPGRADE_REQUIRED, headers={"upgrade": "websocket"})


@get("/v1/responses/{id:str}", operation_class=described(JSON, failures=(400, 401, 404, 500)))
async def get_response(
    request: Request[Any, Any, State], state: State, id: str, stream: bool = False, starting_after: int = -1
) -> Response[Any]:
    """A response that was stored, or is made in the background; of such a one, also its events from a number on."""
    running: Running | None = state.background.get(owner_of(request), id)
    if stream:
        if running is None:
            await found(state.responses, owner_of(request), id)
            kept = "only those of one that is made in the background, and for ten minutes after"
            raise Refused(f"'stream': the events of '{id}' are not kept, {kept}; leave it out", "stream")
        running.check(starting_after)
        return listening(running, starting_after)
    return Response(running.response if running else await found(state.responses, owner_of(request), id))


@post("/v1/responses/{id:str}/cancel", status_code=200, operation_class=described(JSON, failures=(400, 401, 404, 500)))
async def cancel_response(request: Request[Any, Any, State], state: State, id: str) -> dict[str, Any]:
    """Ends a response that is made in the background; one that has ended stays as it is."""
    running: Running | None = state.background.get(owner_of(request), id)
    if running:
        await running.cancel()
        return running.response
    response = await found(state.responses, owner_of(request), id)
    if not response["background"]:
        raise Refused(f"'{id}' was not made in the background; close its connection to end one", "id", "invalid_value")
    return response


@delete("/v1/responses/{id:str}", status_code=200, operation_class=described(JSON, failures=(401, 404, 500)))
async def delete_response(request: Request[Any, Any, State], state: State, id: str) -> dict[str, Any]:
    """Forgets a response, and ends it first. Those that went on from it can be read, but not gone on from."""
    running: Running | None = state.background.get(owner_of(request), id)
    if running:
        await running.cancel()
        state.background.forget(id)
    if not await state.responses.in_thread(state.responses.delete, owner_of(request), id) and not running:
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


def listening(running: Running, after: int) -> Stream:
    return Stream(running.listen(after), media_type=EVENTS.media_type, headers={"cache-control": "no-cache"})


async def found(store: ResponseStore, owner: str, id: str) -> dict[str, Any]:
    response = await store.in_thread(store.response, owner, id)
    if response is None:
        raise UnknownResponse(id)
    return response


async def history_of(
    store: ResponseStore, owner: str, asked: protocol.ResponseRequest | CompactRequest, chain: Chain | None = None
) -> list[Fields]:
    previous = asked.previous_response_id
    if isinstance(asked, protocol.ResponseRequest) and (conversation := protocol.conversation_id(asked)):
        return await said(store, owner, conversation)
    if previous is None:
        return []
    if chain and (history := chain.take(previous)) is not None:
        return history
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


async def shortened(pool: Pool, job: Job) -> tuple[Job, str | None]:
    """With a conversation that fits, and "3 of 12" where turns of it were left out."""
    assert isinstance(job.prompt, Chat)

    async def count(prompt: Chat) -> int:
        return len((await pool.tokenize(job.model, prompt))[1])

    length = await count(job.prompt)  # it is loaded then, and its context known
    known = await pool.on_disk(pool.resolve(job.model))
    context = known.context_length if known else DEFAULT_CONTEXT
    prompt, dropped, whole = await fitted(job.prompt, length, context, job.sampling.max_tokens, count)
    return msgspec.structs.replace(job, prompt=prompt), f"{dropped} of {whole}" if dropped else None


async def save(store: ResponseStore, owner: str, given: list[Fields], response: Fields) -> Fields:
    """The response, stored if it was to be, and said in its conversation. An answer that was made is not lost for a
    full disk: it says it was not stored."""
    try:
        if response["conversation"] and response["status"] in ("completed", "incomplete"):
            items = [*given, *response["output"]]
            if not await store.in_thread(store.say, owner, response["conversation"]["id"], items, answered=True):
                log.warning("'%s': its conversation is gone", response["id"])
        if response["store"]:
            await store.in_thread(store.save, owner, response, given)
    except (sqlite3.Error, OSError) as error:
        log.warning("'%s' is not stored: %s", response["id"], error)
        return response | {"store": False}
    return response


ROUTES = [
    connect_to_responses,
    create_response,
    compact_response,
    count_input_tokens,
    get_response,
    cancel_response,
    delete_response,
    list_input_items,
]
