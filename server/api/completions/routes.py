"""POST /v1/completions: prompts that are taken as they are, without a chat template."""

from typing import Any

from litestar import Request, Response, post
from litestar.datastructures import State

from enginehouse.server import body
from enginehouse.server.api import openai_types
from enginehouse.server.api.completions import protocol
from enginehouse.server.api.completions.render import CompletionRenderer
from enginehouse.server.api.constraints import constraint_of
from enginehouse.server.exchange import answer
from enginehouse.server.openapi import Body, described

BODY = Body(protocol.CompletionRequest, frozenset(protocol.IGNORED), protocol.NEUTRAL)


@post(
    "/v1/completions",
    status_code=200,
    operation_class=described(openai_types.Completion, BODY, streams=True, assigned=True),
)
async def completions(request: Request[Any, Any, State]) -> Response[Any]:
    """How texts or token ids go on, whole or as server-sent events."""
    asked = await body.read_as(request, protocol.read)
    renderer = CompletionRenderer(asked)
    field, _ = constraint_of(asked)
    with body.fields_named({"response_format": field}):
        return await answer(request, protocol.to_jobs(asked, renderer.id), renderer)
