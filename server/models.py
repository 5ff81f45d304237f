"""GET /v1/models, and the health checks."""

from typing import Any

from litestar import Response, get
from litestar.datastructures import State

from runtimes.pool import Pool
from server import replies


@get("/v1/models")
async def list_models(state: State) -> replies.ModelList:
    """Every model of the config."""
    pool: Pool = state.pool
    return replies.ModelList("list", [describe(pool, state.started, name) for name in pool.config.models])


EXPLAIN = "/explain"


@get("/v1/models/{name:path}")
async def get_model(state: State, name: str) -> Any:
    """One model, by its name or an alias; with /explain after it, which runtime serves it and why, with the numbers."""
    pool: Pool = state.pool
    name = name.removeprefix("/")
    if name.endswith(EXPLAIN):  # names may hold slashes, so the router cannot tell the two apart
        return await pool.explain(name.removesuffix(EXPLAIN))
    return describe(pool, state.started, pool.resolve(name))


def describe(pool: Pool, created: int, name: str) -> replies.Model:
    model = pool.config.models[name]
    return replies.Model(name, "model", created, "enginehouse", list(model.aliases), model.source, pool.status(name))


@get("/health")
async def health() -> replies.Status:
    """The process lives."""
    return replies.Status("ok")


@get("/ready")
async def ready(state: State) -> Response[replies.Status]:
    """Whether a request could be served, with the reason if not."""
    reason = state.pool.ready()
    return Response(replies.Status(reason or "ready"), status_code=503 if reason else 200)
