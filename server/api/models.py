"""GET /v1/models, /version and the health checks."""

from importlib.metadata import version as installed

from litestar import get
from litestar.datastructures import State

from enginehouse.runtimes.errors import Unavailable
from enginehouse.runtimes.pool.explanation import Explanation
from enginehouse.runtimes.pool.pool import Pool
from enginehouse.server.api import openai_types
from enginehouse.server.openapi import described


@get("/v1/models", operation_class=described(openai_types.ModelList, failures=(401, 500)))
async def list_models(state: State) -> openai_types.ModelList:
    """Every model of the config."""
    pool: Pool = state.pool
    return openai_types.ModelList("list", [describe(pool, state.started, name) for name in pool.config.models])


EXPLAIN = "/explain"


@get("/v1/models/{name:path}", operation_class=described((openai_types.Model, Explanation)))
async def get_model(state: State, name: str) -> openai_types.Model | Explanation:
    """One model, by its name or an alias; with /explain after it, which runtime serves it and why, with the numbers."""
    pool: Pool = state.pool
    name = name.removeprefix("/")
    if name.endswith(EXPLAIN):  # names may hold slashes, so the router cannot tell the two apart
        return await pool.explain(name.removesuffix(EXPLAIN))
    return describe(pool, state.started, pool.resolve(name))


def describe(pool: Pool, created: int, name: str) -> openai_types.Model:
    model = pool.config.models[name]
    return openai_types.Model(
        name, "model", created, "enginehouse", list(model.aliases), model.source, pool.status(name)
    )


@get("/version", operation_class=described(openai_types.Version, failures=(401, 500)))
async def version() -> openai_types.Version:
    """Of this server."""
    return openai_types.Version(installed("enginehouse"))


@get("/health", operation_class=described(openai_types.Status, failures=(500,)))
async def health() -> openai_types.Status:
    """The process lives."""
    return openai_types.Status("ok")


@get("/ready", operation_class=described(openai_types.Status, failures=(500, 503)))
async def ready(state: State) -> openai_types.Status:
    """Whether a request could be served, with the reason if not."""
    if reason := state.pool.ready():
        raise Unavailable(reason, "not_ready")
    return openai_types.Status("ready")
