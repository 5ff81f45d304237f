"""The Litestar application around one pool."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from litestar import Litestar, Request, Response, Router
from litestar.datastructures import State
from litestar.openapi import OpenAPIConfig
from litestar.openapi.spec import Components, SecurityScheme

from enginehouse.config.schema import Config
from enginehouse.runtimes.pool.pool import Pool
from enginehouse.server import openapi
from enginehouse.server.api import admin
from enginehouse.server.api.chat import stored
from enginehouse.server.api.chat.routes import chat_completions
from enginehouse.server.api.completions.routes import completions
from enginehouse.server.api.embeddings import embeddings
from enginehouse.server.api.messages import routes as messages
from enginehouse.server.api.messages.models import asked_by
from enginehouse.server.api.messages.render import respond as respond_as_anthropic
from enginehouse.server.api.metrics import metrics
from enginehouse.server.api.models import get_model, health, list_models, ready, version
from enginehouse.server.api.ollama import routes as ollama
from enginehouse.server.api.ollama.render import respond as respond_as_ollama
from enginehouse.server.api.rerank import rerank
from enginehouse.server.api.responses import conversations
from enginehouse.server.api.responses import routes as responses
from enginehouse.server.api.responses.background import Background
from enginehouse.server.api.score import score
from enginehouse.server.api.store import ResponseStore
from enginehouse.server.api.tokenize import detokenize, tokenize
from enginehouse.server.auth import Access, host_guard, key_guard
from enginehouse.server.errors import respond
from enginehouse.server.limits import LARGEST_BODY_BYTES
from enginehouse.server.rate_limits import Uses, rate_guard
from enginehouse.server.request_id import request_id_guard
from enginehouse.server.urgency import urgency_guard


def respond_in_dialect(request: Request[Any, Any, State], error: Exception) -> Response[Any]:
    """What no route's own handler is asked about, such as a path that is none."""
    if request.url.path.startswith("/api/"):
        return respond_as_ollama(request, error)
    return respond_as_anthropic(request, error) if asked_by(request) else respond(request, error)


def create(config: Config) -> Litestar:
    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        app.state.pool = Pool(config)
        app.state.access, app.state.uses = Access(config.server), Uses()
        app.state.responses = ResponseStore(config.cache_dir)
        app.state.background = Background()
        app.state.started = int(time.time())
        looking = asyncio.create_task(app.state.pool.probe_host())
        app.state.pool.preload()
        try:
            yield
        finally:
            looking.cancel()
            await app.state.background.end()
            await app.state.pool.drain()

    guarded = [
        chat_completions,
        *stored.ROUTES,
        completions,
        embeddings,
        rerank,
        score,
        tokenize,
        detokenize,
        list_models,
        get_model,
        version,
        metrics,
        *admin.ROUTES,
        *responses.ROUTES,
        *conversations.ROUTES,
    ]
    guards = [key_guard, rate_guard, urgency_guard]
    api = Router(
        "/",
        route_handlers=[*guarded, messages.ROUTER, ollama.ROUTER],
        guards=guards,
    )
    app = Litestar(
        [api, health, ready, ollama.root],
        lifespan=[lifespan],
        state=State(),
        exception_handlers={Exception: respond_in_dialect},
        guards=[host_guard, request_id_guard],
        request_max_body_size=LARGEST_BODY_BYTES,
        openapi_config=OpenAPIConfig(
            "Enginehouse",
            "1",
            openapi_router=Router("/schema", route_handlers=[], guards=guards, include_in_schema=False),
            security=[{"key": []}] if config.server.all_keys else None,
            components=Components(security_schemes={"key": SecurityScheme("http", scheme="bearer")}),
        ),
        logging_config=None,
    )
    handlers = [*guarded, messages.create_message, messages.count_tokens, *ollama.DESCRIBED, health, ready]
    app.openapi_schema.components.schemas = openapi.components([handler.operation_class for handler in handlers])
    return app
