"""/api: Ollama's dialect."""

import secrets
import time
from importlib import metadata
from typing import Any

import msgspec
from litestar import Request, Response, Router, get, post, route
from litestar.datastructures import State
from litestar.enums import HttpMethod, MediaType

from enginehouse.runtimes.contract import Job
from enginehouse.runtimes.pool.pool import Pool
from enginehouse.server import body
from enginehouse.server.api.ollama import models, options, protocol
from enginehouse.server.api.ollama.embed import embed, embeddings
from enginehouse.server.api.ollama.pull import blobs, copy, pull, push_or_create, remove
from enginehouse.server.api.ollama.render import LINES, LineRenderer, as_message, as_response, respond
from enginehouse.server.api.tools import long_names
from enginehouse.server.body import Ignored
from enginehouse.server.exchange import answer
from enginehouse.server.keepalive import assigned_headers, unless_client_leaves
from enginehouse.server.openapi import JSON, Body, described
from enginehouse.server.sse import Framing

VERSION = "0.33.0"  # of Ollama, whose API this is: clients look whether it is new enough for them
CHAT = Body(protocol.OllamaChatRequest, neutral=protocol.NEUTRAL)
GENERATE = Body(protocol.GenerateRequest, neutral=protocol.NEUTRAL_OF_TEXT)


@post("/chat", status_code=200, operation_class=described(JSON, CHAT, LINES, assigned=True, own_failures=True))
async def chat(request: Request[Any, Any, State], state: State) -> Response[Any]:
    """A message, line by line or whole; without messages, the model is loaded."""
    asked = await body.read_as(request, protocol.read_chat, any_kind=True)
    name, chosen = await prepare(state.pool, asked)
    renderer = LineRenderer(asked.model, as_message, long_names(tool.function.name for tool in asked.tools))
    if not asked.messages:
        return await load(request, state.pool, name, asked, renderer)
    job = protocol.chat_job(asked, chosen, f"ollama-{secrets.token_hex(12)}", name)
    return await run(request, state.pool, asked, job, renderer)


@post("/generate", status_code=200, operation_class=described(JSON, GENERATE, LINES, assigned=True, own_failures=True))
async def generate(request: Request[Any, Any, State], state: State) -> Response[Any]:
    """A text, line by line or whole; without a prompt, the model is loaded."""
    asked = await body.read_as(request, protocol.read_generate, any_kind=True)
    name, chosen = await prepare(state.pool, asked)
    renderer = LineRenderer(asked.model, as_response, {})
    if not asked.prompt:
        return await load(request, state.pool, name, asked, renderer)
    job = protocol.generate_job(asked, chosen, f"ollama-{secrets.token_hex(12)}", name)
    return await run(request, state.pool, asked, job, renderer)


async def prepare(pool: Pool, asked: protocol.Request) -> tuple[str, options.Options]:
    """The model's name in the config, and the options, where they can be had of it."""
    name, chosen = models.resolve(pool, asked.model), options.read(asked.options)
    await models.check_context(pool, name, chosen)
    return name, chosen


async def run(
    request: Request[Any, Any, State], pool: Pool, asked: protocol.Request, job: Job, renderer: LineRenderer
) -> Response[Any]:
    if asked.keep_alive is not None:
        pool.keep_alive(job.model, protocol.seconds_of(asked.keep_alive))
    return await answer(request, [job], renderer, Framing(LINES, renderer.silence))


async def load(
    request: Request[Any, Any, State], pool: Pool, name: str, asked: protocol.Request, renderer: LineRenderer
) -> Response[Any]:
    """Or unloads it, where it is to stay for no time."""
    began = time.monotonic()
    if asked.keep_alive is not None:
        stay = protocol.seconds_of(asked.keep_alive)
        if stay == 0:
            pool.unload(name)
            return Response(renderer.loaded("unload", 0.0), media_type="application/json")
        pool.keep_alive(name, stay)
    assigned = await unless_client_leaves(request, pool.load(name, streamed=False))
    loaded = renderer.loaded("load", time.monotonic() - began)
    return Response(loaded, headers=assigned_headers(assigned), media_type="application/json")


class ShowRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    model: str = ""
    name: str = ""  # older clients call it so
    verbose: Ignored = None
    system: Ignored = None
    template: Ignored = None
    options: Ignored = None


@post("/show", status_code=200, operation_class=described(JSON, Body(ShowRequest), own_failures=True))
async def show(request: Request[Any, Any, State], state: State) -> Response[Any]:
    """What is known of a model, its capabilities among it, without loading it."""
    asked = await body.read_as(request, lambda sent: body.parse(sent, ShowRequest), any_kind=True)
    name = models.resolve(state.pool, asked.model or asked.name)
    return Response(await models.described(state.pool, name, state.started), media_type="application/json")


@get("/tags", operation_class=described(JSON, failures=(401, 500), own_failures=True))
async def tags(state: State) -> dict[str, Any]:
    """Every model of the config."""
    return {"models": await models.listed(state.pool, state.started)}


@get("/ps", operation_class=described(JSON, failures=(401, 500), own_failures=True))
async def ps(state: State) -> dict[str, Any]:
    """Those that are loaded, and until when."""
    return {"models": await models.running(state.pool)}


@get("/version", operation_class=described(JSON, failures=(401, 500), own_failures=True))
async def version() -> dict[str, str]:
    """Of Ollama, whose API this is, and ours."""
    return {"version": VERSION, "enginehouse": metadata.version("enginehouse")}


@route("/", http_method=[HttpMethod.GET, HttpMethod.HEAD], media_type=MediaType.TEXT, include_in_schema=False)
async def root() -> str:
    """Clients look for these words to see whether somebody is there."""
    return "Ollama is running"


DESCRIBED = [chat, generate, embed, embeddings, pull, show, tags, ps, version]
ROUTER = Router(
    "/api",
    route_handlers=[*DESCRIBED, push_or_create, copy, remove, blobs],
    exception_handlers={Exception: respond},
)
