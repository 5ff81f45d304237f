"""Who goes to a model's engine next, of those that wait: the keys in turn, and of each the one that came first."""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

AHEAD = 2  # times the slots: so many jobs the engine has, to begin the next without asking for it


class Turn(NamedTuple):
    job: str  # its id
    given: "asyncio.Future[None]"


class Turns:
    """Of one model and priority."""

    def __init__(self, most: Callable[[], int]) -> None:
        """`most`: jobs that the engine is to have at a time."""
        self._most = most
        self._given = 0
        self._waiting: dict[str, deque[Turn]] = {}  # by owner, the next to have a turn first

    async def wait(self, owner: str, job: str) -> None:
        """Then it is the job's turn, until `end`."""
        turn = Turn(job, asyncio.get_running_loop().create_future())
        self._waiting.setdefault(owner, deque()).append(turn)
        self._give()
        try:
            await turn.given
        except asyncio.CancelledError:
            if turn.given.done() and not turn.given.cancelled():
                self.end()  # it was given in the same moment
            else:
                self._leave(owner, turn)
            raise

    def end(self) -> None:
        self._given -= 1
        self._give()

    def before(self, job: str) -> int | None:
        """How many turns come before a job's that waits; None where it does not."""
        counts = [len(turns) for turns in self._waiting.values()]
        for place, turns in enumerate(self._waiting.values()):
            for index, turn in enumerate(turns):
                if turn.job == job:
                    earlier = sum(min(count, index + 1) for count in counts[:place])
                    return earlier + index + sum(min(count, index) for count in counts[place + 1 :])
        return None

    def interrupt(self) -> None:
        """Nobody waits any more: who did may see for itself why."""
        for turn in [turn for turns in self._waiting.values() for turn in turns]:
            turn.given.set_result(None)
            self._given += 1
        self._waiting.clear()

    def _give(self) -> None:
        while self._waiting and self._given < self._most():
            owner = next(iter(self._waiting))
            turns = self._waiting.pop(owner)
            turns.popleft().given.set_result(None)
            self._given += 1
            if turns:
                self._waiting[owner] = turns  # behind the others

    def _leave(self, owner: str, turn: Turn) -> None:
        turns = self._waiting[owner]
        turns.remove(turn)
        if not turns:
            del self._waiting[owner]


class Places:
    """How many requests each key has under way or waiting, by model. None takes more places than it leaves free: who
    comes later finds one."""

    def __init__(self) -> None:
        self._taken: Counter[tuple[str, str]] = Counter()

    def full(self, model: str, owner: str, free: int) -> bool:
        return self._taken[model, owner] >= max(1, free)

    @contextmanager
    def taken(self, model: str, owner: str) -> Iterator[None]:
        self._taken[model, owner] += 1
        try:
            yield
        finally:
            self._taken[model, owner] -= 1
            if not self._taken[model, owner]:
                del self._taken[model, owner]
