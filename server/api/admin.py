"""What operators, with one of server.admin_keys, may do with a model: load, unload, delete what was built for it."""

from typing import Any

import msgspec
from litestar import Request, delete, post
from litestar.datastructures import State
from litestar.exceptions import NotFoundException

from enginehouse.runtimes.pool.pool import Pool
from enginehouse.server.api import openai_types
from enginehouse.server.api.models import describe
from enginehouse.server.auth import admin_guard
from enginehouse.server.keepalive import unless_client_leaves
from enginehouse.server.openapi import described

LOAD, UNLOAD, ARTIFACTS = "/load", "/unload", "/artifacts"


class Deleted(msgspec.Struct, frozen=True):
    id: str
    deleted: list[str]  # keys of artifacts
    in_use: list[str]  # those that stay: a model that is loaded has them
    bytes: int  # that are free now


@post(
    "/v1/models/{name:path}",
    status_code=200,
    guards=[admin_guard],
    operation_class=described(openai_types.Model, failures=(401, 403, 404, 500, 503)),
)
async def load_or_unload(request: Request[Any, Any, State], state: State, name: str) -> openai_types.Model:
    """With /load after its name: the model is made ready as for a request, and described when it is. With /unload: its
    engine ends as soon as nobody asks for it."""
    pool: Pool = state.pool
    name = name.removeprefix("/")
    if name.endswith(LOAD):
        model = pool.resolve(name.removesuffix(LOAD))
        await unless_client_leaves(request, pool.load(model, streamed=False))
    elif name.endswith(UNLOAD):
        model = pool.resolve(name.removesuffix(UNLOAD))
        pool.unload(model)
    else:
        raise NotFoundException
    return describe(pool, state.started, model)


@delete(
    "/v1/models/{name:path}",
    status_code=200,
    guards=[admin_guard],
    operation_class=described(Deleted, failures=(401, 403, 404, 500, 503)),
)
async def delete_artifacts(state: State, name: str) -> Deleted:
    """With /artifacts after its name: what was built of the model's source and nobody uses. When it is wanted, it is
    built again."""
    pool: Pool = state.pool
    name = name.removeprefix("/")
    if not name.endswith(ARTIFACTS):
        raise NotFoundException
    model = pool.resolve(name.removesuffix(ARTIFACTS))
    removed = await pool.delete_artifacts(model)
    gone = {key: size for key, (size, done) in removed.items() if done}
    return Deleted(model, list(gone), [key for key in removed if key not in gone], sum(gone.values()))


ROUTES = [load_or_unload, delete_artifacts]
