"""POST /v1/chat/completions."""

import functools
from typing import Any

from litestar import Request, Response, post
from litestar.datastructures import State

from enginehouse.server import body
from enginehouse.server.api import openai_types
from enginehouse.server.api.chat import protocol, stored
from enginehouse.server.api.chat.render import ChatRenderer
from enginehouse.server.exchange import answer
from enginehouse.server.openapi import Body, described


@post(
    "/v1/chat/completions",
    status_code=200,
    operation_class=described(
        openai_types.ChatCompletion,
        Body(protocol.ChatRequest, frozenset(protocol.IGNORED), protocol.NEUTRAL),
        streams=True,
        assigned=True,
    ),
)
async def chat_completions(request: Request[Any, Any, State], state: State) -> Response[Any]:
    """A chat completion, whole or as server-sent events; docs/api.md lists the fields."""
    chat = await body.read_as(request, protocol.read)
    save = functools.partial(stored.save, state.responses, stored.owner(request), chat) if chat.store else None
    renderer = ChatRenderer(chat, save)
    field, _ = protocol.constraint(chat)
    names = {"response_format": field}
    if chat.functions:
        names["tools"] = "functions"
    if not chat.reasoning_effort:
        names["reasoning_effort"] = "reasoning"
    with body.fields_named(names):
        return await answer(request, protocol.to_jobs(chat, renderer.id), renderer)
