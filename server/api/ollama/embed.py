"""POST /api/embed, and /api/embeddings as it was before."""

import time
from typing import Annotated, Any

import msgspec
from litestar import Request, Response, post
from litestar.datastructures import State

from enginehouse.runtimes.contract import Assigned, Text
from enginehouse.runtimes.errors import Refused
from enginehouse.runtimes.pool.explanation import Loaded
from enginehouse.runtimes.pool.pool import Pool
from enginehouse.runtimes.worker.protocol import Embedded
from enginehouse.server import body
from enginehouse.server.api.embeddings import shortened
from enginehouse.server.api.ollama import options
from enginehouse.server.api.ollama.models import check_context, resolve
from enginehouse.server.api.ollama.protocol import Stay, seconds_of
from enginehouse.server.api.ollama.render import nanoseconds
from enginehouse.server.body import Count
from enginehouse.server.keepalive import assigned_headers, unless_client_leaves
from enginehouse.server.limits import TEXTS
from enginehouse.server.openapi import JSON, Body, described

LETTERS = 16  # to a token, at most: of a text that is cut, so many are looked at


class EmbedRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    model: str
    input: str | Annotated[list[str], msgspec.Meta(max_length=TEXTS)] = ""
    truncate: bool = True
    dimensions: Count | None = None
    options: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    keep_alive: Stay | None = None


class EmbeddingsRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    model: str
    prompt: str = ""
    options: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    keep_alive: Stay | None = None


@post("/embed", status_code=200, operation_class=described(JSON, Body(EmbedRequest), assigned=True, own_failures=True))
async def embed(request: Request[Any, Any, State], state: State) -> Response[Any]:
    """A vector of length 1 for each text, of which what is beyond the context is cut off unless it is to be refused."""
    asked = await body.read_as(request, lambda sent: body.parse(sent, EmbedRequest), any_kind=True)
    texts = [asked.input] if isinstance(asked.input, str) and asked.input else list(asked.input)
    began, pool = time.monotonic(), state.pool
    name = await prepare(pool, asked)
    assigned, loading, embedded = await unless_client_leaves(request, vectors(pool, name, texts, asked.truncate))
    fields = {
        "model": asked.model,
        "embeddings": [shortened(vector, asked.dimensions) for vector in embedded.vectors],
        "total_duration": nanoseconds(time.monotonic() - began),
        "load_duration": nanoseconds(loading),
        "prompt_eval_count": embedded.tokens,
    }
    return Response(fields, headers=assigned_headers(assigned), media_type="application/json")


@post(
    "/embeddings",
    status_code=200,
    operation_class=described(JSON, Body(EmbeddingsRequest), assigned=True, own_failures=True),
)
async def embeddings(request: Request[Any, Any, State], state: State) -> Response[Any]:
    """The vector of one text."""
    asked = await body.read_as(request, lambda sent: body.parse(sent, EmbeddingsRequest), any_kind=True)
    pool, texts = state.pool, [asked.prompt] if asked.prompt else []
    name = await prepare(pool, asked)
    assigned, _, embedded = await unless_client_leaves(request, vectors(pool, name, texts, truncate=True))
    vector = embedded.vectors[0] if texts else []
    return Response({"embedding": vector}, headers=assigned_headers(assigned), media_type="application/json")


async def prepare(pool: Pool, asked: EmbedRequest | EmbeddingsRequest) -> str:
    """The model's name in the config. Of the options, `num_ctx` alone has a meaning here."""
    name, chosen = resolve(pool, asked.model), options.read(asked.options)
    await check_context(pool, name, chosen)
    if asked.keep_alive is not None:
        pool.keep_alive(name, seconds_of(asked.keep_alive))
    return name


async def vectors(pool: Pool, name: str, texts: list[str], truncate: bool) -> tuple[Assigned, float, Embedded]:
    """And how many seconds the model took to load. Without texts it is only loaded."""
    began = time.monotonic()
    assigned = await pool.load(name, streamed=False)
    loading = time.monotonic() - began
    if not texts:
        return assigned, loading, Embedded(0, [], 0)
    if not all(texts):
        raise Refused("'input' holds an empty text", "input", "invalid_value")
    try:
        assigned, embedded = await pool.embed(name, list(texts), "mean")
    except Refused as error:
        if not truncate or error.code != "context_length_exceeded":
            raise
        cut: list[str | list[int]] = [await beginning(pool, name, text) for text in texts]
        assigned, embedded = await pool.embed(name, cut, "mean")
    return assigned, loading, embedded


async def beginning(pool: Pool, name: str, text: str) -> list[int]:
    """The tokens of a text that the context holds."""
    status = pool.status(name)
    assert isinstance(status, Loaded)
    letters = LETTERS * status.context_length
    while True:
        try:
            _, ids = await pool.tokenize(name, Text(text[:letters]))
            return ids[: status.context_length]
        except Refused as error:
            if error.code != "context_length_exceeded":
                raise
        letters //= 2
