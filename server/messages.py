"""/v1/messages: Anthropic's dialect."""

import secrets
from typing import Any

from litestar import Request, Response, Router, post
from litestar.datastructures import State

from server import messages_request
from server.answer import streamed, whole
from server.chat import check_content_type
from server.messages_output import Events, draft, finished, respond
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
    check_content_type(request)
    asked = messages_request.read(await request.body())
    job = messages_request.to_job(asked, f"msg_{secrets.token_hex(12)}")
    begun, omit_thinking = draft(job.id, asked.model), asked.thinking.display == "omitted"
    if asked.stream:
        return await streamed(request, job, Events(begun, asked.max_tokens, omit_thinking))
    blocks, done, headers = await whole(request, job)
    message = finished(begun, blocks, done, asked.max_tokens, omit_thinking)
    return Response(message, headers=headers, media_type="application/json")


@post("/count_tokens", status_code=200, operation_class=described(JSON, COUNTED, own_failures=True))
async def count_tokens(request: Request[Any, Any, State], state: State) -> Response[Any]:
    """How many tokens a message's prompt is, by the model's own template and tokenizer."""
    check_content_type(request)
    asked = messages_request.read_count(await request.body())
    prompt = messages_request.to_chat(asked)
    placed, ids = await unless_client_leaves(request, state.pool.tokenize(asked.model, prompt))
    return Response({"input_tokens": len(ids)}, headers=placed_headers(placed), media_type="application/json")


ROUTER = Router("/v1/messages", route_handlers=[create_message, count_tokens], exception_handlers={Exception: respond})
