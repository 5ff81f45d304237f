"""POST /v1/chat/completions."""

from typing import Any

from litestar import Request, Response, post
from litestar.datastructures import State

from server import body, openai, replies
from server.chat_output import ChatRenderer
from server.exchange import answer
from server.schema import Body, described


@post(
    "/v1/chat/completions",
    status_code=200,
    operation_class=described(
        replies.ChatCompletion,
        Body(openai.ChatRequest, frozenset(openai.IGNORED), openai.NEUTRAL),
        streams=True,
        placed=True,
    ),
)
async def chat_completions(request: Request[Any, Any, State]) -> Response[Any]:
    """A chat completion, whole or as server-sent events; OpenAI's fields and the extensions the README lists."""
    chat = openai.read(await body.read(request))
    renderer = ChatRenderer(chat)
    return await answer(request, openai.to_jobs(chat, renderer.id), renderer)
