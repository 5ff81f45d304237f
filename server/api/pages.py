"""Lists as OpenAI gives them: page by page."""

from collections.abc import Sequence
from typing import Any

from enginehouse.runtimes.errors import Refused

MOST = 100  # in one page


def check_limit(limit: int, most: int = MOST) -> None:
    if not 1 <= limit <= most:
        raise Refused(f"'limit' goes from 1 to {most}", "limit", "invalid_value")


def page(items: Sequence[dict[str, Any]], limit: int, order: str, after: str | None, whose: str) -> dict[str, Any]:
    """Of items that each have an id, the oldest first."""
    items = items if order == "asc" else items[::-1]
    ids = [item["id"] for item in items]
    if after is not None and after not in ids:
        raise no_such_item(after, whose)
    start = ids.index(after) + 1 if after is not None else 0
    return listed(items[start : start + limit], start + limit < len(items))


def no_such_item(after: str, whose: str) -> Refused:
    return Refused(f"'after': there is no item '{after}' in this {whose}", "after", "invalid_value")


def listed(items: Sequence[dict[str, Any]], has_more: bool) -> dict[str, Any]:
    return {
        "object": "list",
        "data": list(items),
        "first_id": items[0]["id"] if items else None,
        "last_id": items[-1]["id"] if items else None,
        "has_more": has_more,
    }
