"""POST /api/pull: a model of the config made ready, as its first request would; and what only Ollama itself can do."""

import asyncio
from typing import Any

import msgspec
from litestar import Request, Response, delete, post, route
from litestar.datastructures import State
from litestar.enums import HttpMethod
from litestar.exceptions import HTTPException
from litestar.response import Stream

from enginehouse.runtimes.errors import EngineFailed, Refused, Unavailable
from enginehouse.runtimes.pool.pool import Pool
from enginehouse.server import body
from enginehouse.server.api.ollama.models import resolve
from enginehouse.server.api.ollama.render import LINES, described, line
from enginehouse.server.body import Ignored
from enginehouse.server.keepalive import COMMENT_SECONDS, Parts, unless_client_leaves
from enginehouse.server.openapi import JSON, Body
from enginehouse.server.openapi import described as documented
from enginehouse.server.urgency import deadline_of

SUCCESS = {"status": "success"}
MODELS = "models are those of Enginehouse's config"


class PullRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    model: str = ""
    name: str = ""  # older clients call it so
    stream: bool = True
    insecure: Ignored = None
    username: Ignored = None
    password: Ignored = None


@post("/pull", status_code=200, operation_class=documented(JSON, Body(PullRequest), LINES, own_failures=True))
async def pull(request: Request[Any, Any, State], state: State) -> Response[Any]:
    """How far a model of the config is on its way to being loaded, line by line, or that it is."""
    asked = await body.read_as(request, lambda sent: body.parse(sent, PullRequest), any_kind=True)
    pool: Pool = state.pool
    name = resolve(pool, asked.model or asked.name)
    if asked.stream:
        return Stream(progress(request, pool, name), media_type=LINES, headers={"cache-control": "no-cache"})
    await unless_client_leaves(request, pool.load(name, streamed=False))
    return Response(SUCCESS, media_type="application/json")


async def progress(request: Request[Any, Any, State], pool: Pool, name: str) -> Parts:
    """Of 100, for how many bytes there are to come is not known."""
    deadline = deadline_of(request)
    loading = asyncio.create_task(pool.load(name, streamed=True))
    try:
        yield line({"status": "pulling manifest"})
        while not loading.done():
            left = deadline.at - asyncio.get_running_loop().time() if deadline else COMMENT_SECONDS
            if deadline and left <= 0:
                raise deadline.missed()
            await asyncio.wait([loading], timeout=min(left, COMMENT_SECONDS))
            if waited := pool.waiting_for(name):
                percent = round(pool.progress(name).percent)
                yield line({"status": waited, "total": 100, "completed": percent})
        loading.result()
        yield line(SUCCESS)
    except (Refused, Unavailable, EngineFailed) as error:
        yield line(described(error)[1])
    finally:
        loading.cancel()


@post(["/push", "/create"], include_in_schema=False)
async def push_or_create() -> None:
    raise not_here(f"{MODELS}: write it there, with its source, instead of making or sending it")


@post("/copy", include_in_schema=False)
async def copy() -> None:
    raise not_here(f"{MODELS}: give it a second name there, under 'aliases'")


@delete("/delete", status_code=200, include_in_schema=False)
async def remove() -> None:
    raise not_here(f"{MODELS}: take it out there; 'enginehouse prune' frees the disk")


@route("/blobs/{digest:str}", http_method=[HttpMethod.POST, HttpMethod.HEAD], include_in_schema=False)
async def blobs(digest: str) -> None:
    raise not_here(f"{MODELS}: give it a folder or a .gguf file there as its source")


def not_here(remedy: str) -> HTTPException:
    return HTTPException(detail=remedy, status_code=501)
