"""/v1/messages: Anthropic's dialect."""

from typing import Any

from litestar import Request, Response, Router, post
from litestar.datastructures import State

from server import body, messages_request
from server.exchange import answer
from server.messages_output import MessageRenderer, respond
from server.schema import JSON, Body, described
from server.waiting import placed_headers, unless_client_leaves

ASKED = Body(messages_request.MessageRequest, frozenset(messages_request.IGNORED), messages_request.NEUTRAL)
COUNTED = Body(messages_request.CountRequest, frozenset(messages_request.IGNORED), messages_request.NEUTRAL)


@post(
    "/",
    status_code=200,
    operation_class=described(JSON, ASKED, streams=True, placed=True, own_failures=True),
)
async def create_message(request: Request[Any, Any, State]) -> Response[Any]:
    """A message, whole or as server-sent events; the README lists the fields."""
    asked = messages_request.read(await body.read(request))
    renderer = MessageRenderer(asked)
    return await answer(request, [messages_request.to_job(asked, renderer.id)], renderer)


@post("/count_tokens", status_code=200, operation_class=described(JSON, COUNTED, own_failures=True))
async def count_tokens(request: Request[Any, Any, State], state: State) -> Response[Any]:
    """How many tokens a message's prompt is, by the model's own template and tokenizer."""
    asked = messages_request.read_count(await body.read(request))
    prompt = messages_request.to_chat(asked)
    placed, ids = await unless_client_leaves(request, state.pool.tokenize(asked.model, prompt))
    return Response({"input_tokens": len(ids)}, headers=placed_headers(placed), media_type="application/json")


ROUTER = Router("/v1/messages", route_handlers=[create_message, count_tokens], exception_handlers={Exception: respond})
