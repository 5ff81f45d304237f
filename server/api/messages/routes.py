"""/v1/messages: Anthropic's dialect."""

from typing import Any

from litestar import Request, Response, Router, post
from litestar.datastructures import State

from enginehouse.server import body
from enginehouse.server.api.messages import protocol
from enginehouse.server.api.messages.render import MessageRenderer, respond
from enginehouse.server.exchange import answer
from enginehouse.server.keepalive import assigned_headers, unless_client_leaves
from enginehouse.server.openapi import JSON, Body, described

ASKED = Body(protocol.MessageRequest, frozenset(protocol.IGNORED), protocol.NEUTRAL)
COUNTED = Body(protocol.CountRequest, frozenset(protocol.IGNORED), protocol.NEUTRAL)


@post(
    "/",
    status_code=200,
    operation_class=described(JSON, ASKED, streams=True, assigned=True, own_failures=True),
)
async def create_message(request: Request[Any, Any, State]) -> Response[Any]:
    """A message, whole or as server-sent events; docs/api.md lists the fields."""
    asked = await body.read_as(request, protocol.read)
    renderer = MessageRenderer(asked)
    return await answer(request, [protocol.to_job(asked, renderer.id)], renderer)


@post("/count_tokens", status_code=200, operation_class=described(JSON, COUNTED, assigned=True, own_failures=True))
async def count_tokens(request: Request[Any, Any, State], state: State) -> Response[Any]:
    """How many tokens a message's prompt is, by the model's own template and tokenizer."""
    asked = await body.read_as(request, protocol.read_count)
    prompt = protocol.to_chat(asked)
    assigned, ids = await unless_client_leaves(request, state.pool.tokenize(asked.model, prompt))
    return Response({"input_tokens": len(ids)}, headers=assigned_headers(assigned), media_type="application/json")


ROUTER = Router("/v1/messages", route_handlers=[create_message, count_tokens], exception_handlers={Exception: respond})
