"""The models as Anthropic's clients list them, page by page."""

import datetime
from collections.abc import Sequence
from typing import Literal

import msgspec
from litestar import Request
from litestar.datastructures import State

from enginehouse.runtimes.errors import Refused
from enginehouse.runtimes.pool.explanation import Loaded
from enginehouse.server.api import openai_types
from enginehouse.server.api.pages import check_limit

VERSION = "anthropic-version"  # the header by which they are known
MOST_MODELS, USUAL_MODELS = 1000, 20  # in one page, as Anthropic's


class ModelInfo(msgspec.Struct, frozen=True):
    id: str
    display_name: str
    created_at: str
    max_input_tokens: int | None
    max_tokens: int | None
    type: Literal["model"] = "model"
    lifecycle: Literal["active"] = "active"


class ModelPage(msgspec.Struct, frozen=True):
    data: list[ModelInfo]
    has_more: bool
    first_id: str | None
    last_id: str | None


def asked_by(request: Request[object, object, State]) -> bool:
    return VERSION in request.headers


def info(model: openai_types.Model) -> ModelInfo:
    created = datetime.datetime.fromtimestamp(model.created, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    context = model.status.context_length if isinstance(model.status, Loaded) else None
    return ModelInfo(model.id, model.id, created, context, context)


def page(
    models: Sequence[openai_types.Model], limit: int, before: str | None, after: str | None, lifecycle: Sequence[str]
) -> ModelPage:
    """Raises Refused for a limit or an id that is none."""
    check_limit(limit, MOST_MODELS)
    if before is not None and after is not None:
        raise Refused("'before_id' and 'after_id' are two ways to go; send one", "before_id", "invalid_value")
    listed = [info(model) for model in models if not lifecycle or "active" in lifecycle]
    ids = [model.id for model in listed]
    for field, id in (("before_id", before), ("after_id", after)):
        if id is not None and id not in ids:
            raise Refused(f"'{field}': there is no model '{id}'", field, "invalid_value")
    if before is not None:
        rest = listed[: ids.index(before)]
        shown = rest[-limit:]
    else:
        rest = listed[ids.index(after) + 1 :] if after is not None else listed
        shown = rest[:limit]
    return ModelPage(shown, len(rest) > len(shown), *((shown[0].id, shown[-1].id) if shown else (None, None)))
