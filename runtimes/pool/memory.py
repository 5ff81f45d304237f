"""memory_budget: how much of it each model has, who waits for some, and who makes room for them."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection
from typing import Protocol

from enginehouse.config.schema import Config, bytes_of
from enginehouse.runtimes.errors import RETRY_SECONDS, Unavailable
from enginehouse.runtimes.pool import host, routing
from enginehouse.runtimes.pool.routing import Held

Key = tuple[str, str]  # name of the model, key of the candidate
TURN_SECONDS = 10.0  # that a model answers whoever comes, from its load and from when another began to wait for room


class Holder(Protocol):
    """A loaded model, as far as its memory goes."""

    @property
    def key(self) -> Key: ...
    @property
    def bytes(self) -> int:
        """That it has, or may take without asking."""

    users: int  # requests that run on it
    used: float  # when last
    loaded_at: float

    def expect(self, bytes: int) -> None:
        """It may take so much more."""


class Memory:
    """Decides; `drop` unloads and returns when the memory is free."""

    def __init__(
        self,
        config: Config,
        holders: Callable[[], Collection[Holder]],
        closing_bytes: Callable[[], int],
        requests: Callable[[str], int],
        interactive: Callable[[str], int],
        drop: Callable[[Collection[Key]], "asyncio.Future[list[None]]"],
    ) -> None:
        """`closing_bytes`: of workers that are unloaded and not gone yet; `requests`: how many a model has under way or
        waiting, `interactive`: of them those that are no batch's."""
        self._config, self._holders, self._closing_bytes = config, holders, closing_bytes
        self._requests, self._interactive, self._drop = requests, interactive, drop
        self._reserved: dict[Key, int] = {}  # of models on their way into memory
        self._waiting: dict[Key, float] = {}  # who waits for it, since when
        self._change = asyncio.Event()

    def reconfigure(self, config: Config) -> None:
        self._config = config
        self.changed()

    @property
    def budget(self) -> int:
        return bytes_of(self._config.memory_budget, host.total_memory())

    def changed(self) -> None:
        """Who waits looks again: a request has ended, or a worker."""
        self._change.set()
        self._change = asyncio.Event()

    # --- loads ---

    async def reserve(self, key: Key, needed: int, least: int, evict: bool = True) -> None:
        """Sets memory aside until `release`. Idle models are unloaded for it; busy ones end what they do, and then let
        this one have its turn. `least`: bytes without which it cannot be loaded at all. Raises Unavailable where that
        is beyond the budget, and without `evict` where it is not free."""
        budget = self.budget
        if least > budget:
            lack, limit = f"needs at least {least >> 20} MiB", f"memory_budget is {budget >> 20} MiB"
            remedy = "raise it, or lower precision, 'context' or 'slots'"
            raise Unavailable(f"model '{key[0]}' {lack}, and {limit}; {remedy}", "no_memory")
        wanted = min(needed, budget)  # an estimate may be wrong: alone it may try
        try:
            while True:
                held = self._held()
                gone = routing.evictions(wanted, self._left(), held)
                if gone is not None and (evict or not gone):
                    self._reserved[key] = wanted
                    await self._drop(gone)
                    return
                own = any(one.key[0] == key[0] and one.busy for one in held)  # it cannot wait for itself
                if own or not evict:
                    raise self._too_little(key[0], needed, held)
                self._waiting.setdefault(key, time.monotonic())
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._change.wait(), TURN_SECONDS / 4)
        finally:
            if self._waiting.pop(key, None):
                self.changed()

    def release(self, key: Key) -> None:
        if self._reserved.pop(key, None):
            self.changed()

    def _too_little(self, name: str, needed: int, held: list[Held]) -> Unavailable:
        busy = sum(one.bytes for one in held if one.busy)
        return Unavailable(
            f"model '{name}' needs about {needed >> 20} MiB; memory_budget is {self.budget >> 20} MiB, of which "
            f"{busy >> 20} MiB are in use; raise it, or lower 'context' or 'slots'",
            "no_memory",
            RETRY_SECONDS if busy else None,
        )

    # --- turns ---

    def yields(self, holder: Holder) -> bool:
        """Whether it takes no further request, because another model waits for its memory and it has had its turn. A
        batch waits until nobody asks."""
        now = time.monotonic()
        return now > holder.loaded_at + TURN_SECONDS and any(
            name != holder.key[0] and now > since + TURN_SECONDS and self._interactive(name) > 0
            for (name, _), since in self._waiting.items()
        )

    async def next_change(self) -> None:
        await self._change.wait()

    def waiting(self, name: str) -> str | None:
        """Whom a model that waits for memory waits for."""
        if not any(model == name for model, _ in self._waiting):
            return None
        busy = sorted({one.key[0] for one in self._held() if one.busy and one.key[0]})
        return f"waiting for memory that is in use by {', '.join(map(repr, busy)) or 'another model'}"

    # --- what is loaded ---

    def fits(self, key: Key) -> int:
        """Bytes that a model on its way into memory may take in all, if every idle one made room."""
        held = self._held()
        busy, idle = (sum(one.bytes for one in held if one.busy is state) for state in (True, False))
        others = sum(bytes for other, bytes in self._reserved.items() if other != key)
        return max(1, min(self.budget - others - busy, host.free_memory() + idle))

    async def grant(self, holder: Holder, bytes: int) -> bool:
        """Whether a model that answers may take so much more now; idle ones make room for it."""
        gone = routing.evictions(bytes, self._left(), self._held(busy=holder.key))
        if gone is None:
            return False
        holder.expect(bytes)
        await self._drop(gone)
        return True

    def settle(self) -> None:
        """What has grown beyond its estimate makes idle models leave; the one that was used last stays."""
        held = self._held()
        over = sum(one.bytes for one in held) - self._left()
        idle = sorted((one for one in held if not one.busy), key=lambda one: one.used)
        last = max((one.used for one in held), default=0.0)
        gone = list[Key]()
        for one in idle:
            if over <= 0 or one.used == last:
                break
            gone.append(one.key)
            over -= one.bytes
        if gone:
            self._drop(gone)

    def _left(self) -> int:
        """Of the budget, for all that is loaded."""
        return self.budget - sum(self._reserved.values()) - self._closing_bytes()

    def _held(self, busy: Key | None = None) -> list[Held]:
        """`busy`: one that is, whatever else is known of it."""
        return [Held(one.key, one.bytes, one.key == busy or self._busy(one), one.used) for one in self._holders()]

    def _busy(self, holder: Holder) -> bool:
        if self.yields(holder):  # whoever asks for it waits for its next turn
            return holder.users > 0
        return holder.users > 0 or self._requests(holder.key[0]) > 0
