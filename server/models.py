"""GET /v1/models, and the health checks."""

import msgspec
from litestar import get
from litestar.datastructures import State

from runtimes.contract import Unavailable
from runtimes.pool import Pool
from server import replies
from server.schema import described


@get("/v1/models", operation_class=described(replies.ModelList, failures=(401, 500)))
async def list_models(state: State) -> replies.ModelList:
    """Every model of the config."""
    pool: Pool = state.pool
    return replies.ModelList("list", [describe(pool, state.started, name) for name in pool.config.models])


EXPLAIN = "/explain"


@get("/v1/models/{name:path}", operation_class=described((replies.Model, replies.Explanation)))
async def get_model(state: State, name: str) -> replies.Model | replies.Explanation:
    """One model, by its name or an alias; with /explain after it, which runtime serves it and why, with the numbers."""
    pool: Pool = state.pool
    name = name.removeprefix("/")
    if name.endswith(EXPLAIN):  # names may hold slashes, so the router cannot tell the two apart
        return msgspec.convert(await pool.explain(name.removesuffix(EXPLAIN)), replies.Explanation)
    return describe(pool, state.started, pool.resolve(name))


def describe(pool: Pool, created: int, name: str) -> replies.Model:
    model = pool.config.models[name]
    return replies.Model(name, "model", created, "enginehouse", list(model.aliases), model.source, pool.status(name))


@get("/health", operation_class=described(replies.Status, failures=(500,)))
async def health() -> replies.Status:
    """The process lives."""
    return replies.Status("ok")


@get("/ready", operation_class=described(replies.Status, failures=(500, 503)))
async def ready(state: State) -> replies.Status:
    """Whether a request could be served, with the reason if not."""
    if reason := state.pool.ready():
        raise Unavailable(reason, "not_ready")
    return replies.Status("ready")
