"""POST /v1/completions: prompts that are taken as they are, without a chat template."""

from typing import Any

from litestar import Request, Response, post
from litestar.datastructures import State

from server import body, completions_request, replies
from server.completions_output import CompletionRenderer
from server.exchange import answer
from server.schema import Body, described

BODY = Body(completions_request.CompletionRequest, frozenset(completions_request.IGNORED), completions_request.NEUTRAL)


@post(
    "/v1/completions", status_code=200, operation_class=described(replies.Completion, BODY, streams=True, placed=True)
)
async def completions(request: Request[Any, Any, State]) -> Response[Any]:
    """How texts or token ids go on, whole or as server-sent events."""
    asked = completions_request.read(await body.read(request))
    renderer = CompletionRenderer(asked)
    return await answer(request, completions_request.to_jobs(asked, renderer.id), renderer)
