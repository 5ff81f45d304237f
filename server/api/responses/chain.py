"""The last response of a connection: what comes next goes on from it, though it was not stored."""

from collections.abc import Mapping
from typing import Any

import msgspec

from enginehouse.server.limits import LARGEST_BODY_BYTES

Items = list[dict[str, Any]]
SCOPE = "enginehouse.chain"  # of an ASGI scope


class Chain:
    def __init__(self) -> None:
        self._id, self._items, self._size = "", Items(), 0

    def take(self, id: str) -> Items | None:
        """All up to that response and with it; it is forgotten until what goes on from it has succeeded."""
        if id != self._id:
            return None
        items = self._items
        self._id, self._items = "", []
        return items

    def keep(self, id: str, before: Items, new: Items, new_bytes: int) -> None:
        """One that is too large is not kept."""
        self._size = new_bytes + (self._size if before else 0)
        if self._size <= LARGEST_BODY_BYTES:
            self._id, self._items = id, [*before, *new]
        else:
            self._id, self._items = "", []


def chain_of(scope: Mapping[str, Any]) -> Chain | None:
    """None where each request stands alone."""
    return scope.get(SCOPE)


def size_of(items: Items) -> int:
    return sum(len(msgspec.json.encode(item)) for item in items)
