"""GET /v1/models, /v1/host, /version and the health checks."""

from importlib.metadata import version as installed
from typing import Any

import msgspec
from litestar import Request, get
from litestar.datastructures import State

from enginehouse.runtimes.errors import Unavailable
from enginehouse.runtimes.pool.explanation import Explanation, Surroundings
from enginehouse.runtimes.pool.pool import Pool
from enginehouse.server.api import openai_types
from enginehouse.server.api.messages.models import USUAL_MODELS, ModelInfo, ModelPage, asked_by, info, page
from enginehouse.server.openapi import described
from enginehouse.server.rate_limits import may_use


@get("/v1/models", operation_class=described((openai_types.ModelList, ModelPage), failures=(400, 401, 500)))
async def list_models(
    request: Request[Any, Any, State],
    state: State,
    limit: int = USUAL_MODELS,
    before_id: str | None = None,
    after_id: str | None = None,
    lifecycle: list[str] | None = None,
) -> openai_types.ModelList | ModelPage:
    """Every model of the config; with the header anthropic-version a page of them, in Anthropic's shape."""
    pool: Pool = state.pool
    models = [describe(pool, state.started, name) for name in pool.config.models if may_use(request, name)]
    if asked_by(request):
        return page(models, limit, before_id, after_id, lifecycle or ())
    return openai_types.ModelList("list", models)


EXPLAIN = "/explain"


@get("/v1/models/{name:path}", operation_class=described((openai_types.Model, ModelInfo, Explanation)))
async def get_model(
    request: Request[Any, Any, State], state: State, name: str
) -> openai_types.Model | ModelInfo | Explanation:
    """One model, by its name or an alias; with /explain after it, which runtime serves it and why, with the numbers."""
    pool: Pool = state.pool
    name = name.removeprefix("/")
    if name.endswith(EXPLAIN):  # names may hold slashes, so the router cannot tell the two apart
        return await pool.explain(name.removesuffix(EXPLAIN))
    model = describe(pool, state.started, pool.resolve(name))
    return info(model) if asked_by(request) else model


def describe(pool: Pool, created: int, name: str) -> openai_types.Model:
    model = pool.known[name]
    return openai_types.Model(
        name, "model", created, "enginehouse", list(model.aliases), model.origin, pool.status(name)
    )


@get("/v1/host", operation_class=described(Surroundings, failures=(401, 500)))
async def get_host(state: State) -> Surroundings:
    """This machine, its runtimes and why some cannot run here, and the memory that models may take."""
    pool: Pool = state.pool
    return await pool.surroundings()


@get("/version", operation_class=described(openai_types.Version, failures=(401, 500)))
async def version() -> openai_types.Version:
    """Of this server."""
    return openai_types.Version(installed("enginehouse"))


@get("/health", operation_class=described(openai_types.Status, failures=(500, 503)))
async def health(state: State) -> openai_types.Status:
    """The process lives, and takes requests: 503 once it was told to stop, so that a balancer turns elsewhere."""
    pool: Pool = state.pool
    if pool.draining:
        raise Unavailable("the server is draining: it was told to stop", "draining")
    return openai_types.Status("ok", getattr(state, "refused", "") or msgspec.UNSET)


@get("/ready", operation_class=described(openai_types.Status, failures=(500, 503)))
async def ready(state: State) -> openai_types.Status:
    """Whether a request could be served, with the reason if not."""
    if reason := state.pool.ready():
        raise Unavailable(reason, "not_ready")
    return openai_types.Status("ready")
