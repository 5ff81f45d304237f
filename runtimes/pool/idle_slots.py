"""Slots that nobody wants, for what has time: one is given where a request could begin at once, and another still be
free."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable

from enginehouse.runtimes.errors import shutting_down

LEFT_FREE = 1  # of a model's slots, where it has more than that


class IdleSlots:
    def __init__(self, requests: Callable[[str], int], slots: Callable[[str], int]) -> None:
        """`requests`: answered now or waiting, of a model; `slots`: that it has."""
        self._requests, self._slots = requests, slots
        self._held: Counter[str] = Counter()  # slots that were given, by model
        self._first: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # held by who has the next
        self._changed = asyncio.Event()
        self._closed = False

    async def take(self, name: str, most: int) -> None:
        """Waits for one, in turn; it is to be given back. `most`: that may be held of this model in all. Raises
        Unavailable where the server stops."""
        async with self._first[name]:
            while not self._closed and not self._is_free(name, most):
                await self._changed.wait()
            if self._closed:
                raise shutting_down()
            self._held[name] += 1

    def _is_free(self, name: str, most: int) -> bool:
        held = self._held[name]
        wanted = max(self._requests(name), held)  # a request is counted a moment after its slot was given
        return held < most and wanted < max(self._slots(name) - LEFT_FREE, 1)

    def give_back(self, name: str) -> None:
        self._held[name] -= 1
        self.look_again()

    def look_again(self) -> None:
        """Something has changed by which there may be one."""
        self._changed.set()
        self._changed = asyncio.Event()

    def close(self) -> None:
        self._closed = True
        self.look_again()
