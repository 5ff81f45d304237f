"""POST /v1/score: how near texts are to one another by their embeddings, in the shape of vLLM."""

import asyncio
import secrets
import time
from typing import Annotated, Any

import msgspec
from litestar import Request, Response, post
from litestar.datastructures import State

from enginehouse.runtimes.contract import Pooling
from enginehouse.runtimes.errors import Refused
from enginehouse.runtimes.pool.pool import Pool
from enginehouse.server import body
from enginehouse.server.api import openai_types
from enginehouse.server.api.rerank import similarities
from enginehouse.server.keepalive import assigned_headers, unless_client_leaves
from enginehouse.server.limits import TEXTS
from enginehouse.server.openapi import Body, described
from enginehouse.server.rate_limits import charge

Text = Annotated[str, msgspec.Meta(min_length=1)]
OneOrMore = Text | Annotated[list[Text], msgspec.Meta(min_length=1, max_length=TEXTS - 1)]


class ScoreRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    model: str
    text_1: OneOrMore
    text_2: OneOrMore
    pooling: Pooling = "mean"  # an extension: how the tokens' states become one


@post(
    ["/v1/score", "/score"],
    status_code=200,
    operation_class=described(openai_types.ScoreList, Body(ScoreRequest), assigned=True),
)
async def score(request: Request[Any, Any, State], state: State) -> Response[openai_types.ScoreList]:
    """One text to each of several, or each to its own counterpart: the cosine of the angle between embeddings."""
    asked = await body.read_as(request, lambda sent: body.parse(sent, ScoreRequest))
    first, second = listed(asked.text_1), listed(asked.text_2)
    if len(first) not in (1, len(second)):
        raise Refused("'text_1' holds one text, or as many as 'text_2'", "text_1", "invalid_value")
    if len(first) + len(second) > TEXTS:
        raise Refused(f"'text_1' and 'text_2' take {TEXTS} texts at most together", "text_2", "invalid_value")
    pool: Pool = state.pool
    embedding = pool.embed(asked.model, [*first, *second], asked.pooling)
    assigned, embedded = await unless_client_leaves(request, embedding)
    charge(request.scope, embedded.tokens)
    vectors = embedded.vectors
    scores = await asyncio.to_thread(scored, vectors[: len(first)], vectors[len(first) :])
    data = [openai_types.Score(index, "score", one) for index, one in enumerate(scores)]
    usage = openai_types.PromptUsage(embedded.tokens, embedded.tokens)
    id, created = f"score-{secrets.token_hex(12)}", int(time.time())
    answer = openai_types.ScoreList(id, "list", created, asked.model, data, usage)
    return Response(answer, headers=assigned_headers(assigned), media_type="application/json")


def listed(texts: str | list[str]) -> list[str | list[int]]:
    return [texts] if isinstance(texts, str) else [*texts]


def scored(first: list[list[float]], second: list[list[float]]) -> list[float]:
    if len(first) == 1:
        return similarities(first[0], *second)
    return [similarities(one, other)[0] for one, other in zip(first, second, strict=True)]
