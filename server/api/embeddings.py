"""POST /v1/embeddings."""

import base64
import math
import struct
from typing import Annotated, Any, Literal

import msgspec
from litestar import Request, Response, post
from litestar.datastructures import State

from enginehouse.runtimes.contract import Pooling
from enginehouse.runtimes.errors import Refused
from enginehouse.runtimes.pool.pool import Pool
from enginehouse.server import body
from enginehouse.server.api import openai_types
from enginehouse.server.body import Texts
from enginehouse.server.keepalive import assigned_headers, unless_client_leaves
from enginehouse.server.limits import TEXTS
from enginehouse.server.openapi import Body, described
from enginehouse.server.rate_limits import charge


class EmbeddingRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    model: str
    input: Texts
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, msgspec.Meta(ge=1)] | None = None  # the first so many, scaled to length 1 again
    user: str | None = None  # without effect
    pooling: Pooling = "mean"  # an extension: how the tokens' states become one


@post(
    "/v1/embeddings",
    status_code=200,
    operation_class=described(openai_types.EmbeddingList, Body(EmbeddingRequest), assigned=True),
)
async def embeddings(request: Request[Any, Any, State], state: State) -> Response[Any]:
    """A vector of length 1 for each text, from the hidden states of the model's last layer."""
    asked = await body.read_as(request, lambda sent: body.parse(sent, EmbeddingRequest))
    pool: Pool = state.pool
    texts = body.texts_of(asked.input, "input")
    if len(texts) > TEXTS:
        raise Refused(f"'input' takes {TEXTS} texts at most", "input", "invalid_value")
    assigned, embedded = await unless_client_leaves(request, pool.embed(asked.model, texts, asked.pooling))
    charge(request.scope, embedded.tokens)
    vectors = [shortened(vector, asked.dimensions) for vector in embedded.vectors]
    data = [
        openai_types.Embedding("embedding", index, encoded(vector, asked.encoding_format))
        for index, vector in enumerate(vectors)
    ]
    usage = openai_types.PromptUsage(embedded.tokens, embedded.tokens)
    listed = openai_types.EmbeddingList("list", data, asked.model, usage)
    return Response(listed, headers=assigned_headers(assigned), media_type="application/json")


def shortened(vector: list[float], dimensions: int | None) -> list[float]:
    if dimensions is None:
        return vector
    if dimensions > len(vector):
        raise Refused(f"'dimensions' is at most {len(vector)} for this model", "dimensions", "invalid_value")
    length = math.hypot(*vector[:dimensions]) or 1.0
    return [value / length for value in vector[:dimensions]]


def encoded(vector: list[float], form: str) -> list[float] | str:
    return vector if form == "float" else base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
