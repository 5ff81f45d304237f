"""What constraints were made into, made beside the loop: the libraries compile without the interpreter's lock."""

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from enginehouse.runtimes.contract import WAITING, Constraint, Pieces

M = TypeVar("M")  # what an engine makes of one
KEPT = 64
NICENESS = 10  # of Linux, which a thread has for itself and hands on to those that it starts


class Constraints(Generic[M]):
    """One at a time is made, in a thread that gives way to the loop's."""

    def __init__(self, make: Callable[[Constraint], M]) -> None:
        """`make`: raises Refused for what cannot be enforced."""
        self._make = make
        self._made: dict[Constraint, M] = {}  # the latest
        self._thread = ThreadPoolExecutor(1, "constraints", give_way)
        self._last: Future[M] | None = None

    def of(self, constraint: Constraint) -> M:
        """Made at once, if it was not made ready."""
        made = self._made.get(constraint)
        return self._keep(constraint) if made is None else made

    def make_ready(self, constraint: Constraint) -> Pieces[None]:
        """As Engine.make_ready."""
        if constraint in self._made:
            return
        making = self._last = self._thread.submit(self.of, constraint)
        try:
            while not making.done():
                yield WAITING
            making.result()
        finally:
            making.cancel()

    @property
    def idle(self) -> bool:
        return self._last is None or self._last.done()

    def forget(self) -> None:
        self._made.clear()

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _keep(self, constraint: Constraint) -> M:
        made = self._make(constraint)
        if len(self._made) >= KEPT:
            del self._made[next(iter(self._made))]
        self._made[constraint] = made
        return made


def give_way() -> None:
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
