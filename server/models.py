"""GET /v1/models, and the health checks."""

from typing import Any

from litestar import Response, get
from litestar.datastructures import State

from runtimes.pool import Pool


@get("/v1/models")
async def list_models(state: State) -> dict[str, Any]:
    """Every model of the config."""
    pool: Pool = state.pool
    return {"object": "list", "data": [describe(pool, state.started, name) for name in pool.config.models]}


EXPLAIN = "/explain"


@get("/v1/models/{name:path}")
async def get_model(state: State, name: str) -> dict[str, Any]:
    """One model, by its name or an alias; with /explain after it, which runtime serves it and why, with the numbers."""
    pool: Pool = state.pool
    name = name.removeprefix("/")
    if name.endswith(EXPLAIN):  # names may hold slashes, so the router cannot tell the two apart
        return await pool.explain(name.removesuffix(EXPLAIN))
    return describe(pool, state.started, pool.resolve(name))


def describe(pool: Pool, created: int, name: str) -> dict[str, Any]:
    model = pool.config.models[name]
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "enginehouse",
        "aliases": model.aliases,
        "source": model.source,
        "status": pool.status(name),
    }


@get("/health")
async def health() -> dict[str, str]:
    """The process lives."""
    return {"status": "ok"}


@get("/ready")
async def ready(state: State) -> Response[dict[str, str]]:
    """Whether a request could be served, with the reason if not."""
    reason = state.pool.ready()
    return Response({"status": reason or "ready"}, status_code=503 if reason else 200)
