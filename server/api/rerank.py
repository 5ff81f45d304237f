"""POST /v1/rerank: documents in the order of how near their embeddings are to a query's."""

import asyncio
import operator
import secrets
from typing import Annotated, Any

import msgspec
from litestar import Request, Response, post
from litestar.datastructures import State

from enginehouse.runtimes.contract import Pooling
from enginehouse.runtimes.errors import Refused
from enginehouse.runtimes.pool.pool import Pool
from enginehouse.server import body
from enginehouse.server.api import openai_types
from enginehouse.server.api.openai_types import Document
from enginehouse.server.body import Count
from enginehouse.server.keepalive import assigned_headers, unless_client_leaves
from enginehouse.server.limits import TEXTS
from enginehouse.server.openapi import Body, described
from enginehouse.server.rate_limits import charge


class RerankRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Jina's and Cohere's shape."""

    model: str
    query: Annotated[str, msgspec.Meta(min_length=1)]
    documents: Annotated[list[str | Document], msgspec.Meta(min_length=1, max_length=TEXTS - 1)]
    top_n: Count | None = None  # None: all
    return_documents: bool = False
    pooling: Pooling = "mean"  # an extension: how the tokens' states become one


@post(
    ["/v1/rerank", "/v2/rerank", "/rerank"],
    status_code=200,
    operation_class=described(openai_types.Reranking, Body(RerankRequest), assigned=True),
)
async def rerank(request: Request[Any, Any, State], state: State) -> Response[openai_types.Reranking]:
    """The documents nearest to the query first; the score is the cosine of the angle between embeddings."""
    asked = await body.read_as(request, lambda sent: body.parse(sent, RerankRequest))
    documents = [text if isinstance(text, str) else text.text for text in asked.documents]
    if not all(documents):
        raise Refused("'documents' holds an empty text", "documents", "invalid_value")
    pool: Pool = state.pool
    embedding = pool.embed(asked.model, [asked.query, *documents], asked.pooling)
    assigned, embedded = await unless_client_leaves(request, embedding)
    charge(request.scope, embedded.tokens)
    scores = await asyncio.to_thread(similarities, *embedded.vectors)  # 8 million products for 2,047 documents
    best = sorted(range(len(scores)), key=lambda index: -scores[index])[: asked.top_n]
    results = [
        openai_types.Ranking(
            index, scores[index], Document(documents[index]) if asked.return_documents else msgspec.UNSET
        )
        for index in best
    ]
    usage = openai_types.PromptUsage(embedded.tokens, embedded.tokens)
    ranking = openai_types.Reranking(f"rerank-{secrets.token_hex(12)}", asked.model, results, usage)
    return Response(ranking, headers=assigned_headers(assigned), media_type="application/json")


def similarities(query: list[float], *vectors: list[float]) -> list[float]:
    return [sum(map(operator.mul, query, vector)) for vector in vectors]
