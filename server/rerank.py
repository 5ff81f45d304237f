"""POST /v1/rerank: documents in the order of how near their embeddings are to a query's."""

import secrets
from typing import Annotated, Any

import msgspec
from litestar import Request, Response, post
from litestar.datastructures import State

from runtimes.contract import Pooling, Refused
from runtimes.pool import Pool
from server import body, replies
from server.body import Count
from server.embeddings import MOST_TEXTS
from server.replies import Document
from server.schema import Body, described
from server.waiting import placed_headers, unless_client_leaves


class RerankRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Jina's and Cohere's shape."""

    model: str
    query: Annotated[str, msgspec.Meta(min_length=1)]
    documents: Annotated[list[str | Document], msgspec.Meta(min_length=1, max_length=MOST_TEXTS - 1)]
    top_n: Count | None = None  # None: all
    return_documents: bool = False
    pooling: Pooling = "mean"  # an extension: how the tokens' states become one


@post("/v1/rerank", status_code=200, operation_class=described(replies.Reranking, Body(RerankRequest), placed=True))
async def rerank(request: Request[Any, Any, State], state: State) -> Response[replies.Reranking]:
    """The documents nearest to the query first; the score is the cosine of the angle between embeddings."""
    asked = body.parse(await body.read(request), RerankRequest)
    documents = [text if isinstance(text, str) else text.text for text in asked.documents]
    if not all(documents):
        raise Refused("'documents' holds an empty text", "documents", "invalid_value")
    pool: Pool = state.pool
    embedding = pool.embed(asked.model, [asked.query, *documents], asked.pooling)
    placed, embedded = await unless_client_leaves(request, embedding)
    query, *vectors = embedded.vectors
    scores = [sum(x * y for x, y in zip(query, vector, strict=True)) for vector in vectors]
    best = sorted(range(len(scores)), key=lambda index: -scores[index])[: asked.top_n]
    results = [
        replies.Ranking(index, scores[index], Document(documents[index]) if asked.return_documents else msgspec.UNSET)
        for index in best
    ]
    usage = replies.PromptUsage(embedded.tokens, embedded.tokens)
    ranking = replies.Reranking(f"rerank-{secrets.token_hex(12)}", asked.model, results, usage)
    return Response(ranking, headers=placed_headers(placed), media_type="application/json")
