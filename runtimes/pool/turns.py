"""Who goes to a model's engine next, of those that wait: the keys in turn, and of each the one that came first."""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

AHEAD = 2  # times the slots: so many jobs the engine has, to begin the next without asking for it


class Turn(NamedTuple):
    """A request's, for all its jobs: its stream begins when all are admitted."""

    request: str  # its id
    jobs: "list[asyncio.Future[None]]"


class Turns:
    """Of one model and priority."""

    def __init__(self, most: Callable[[], int]) -> None:
        """`most`: jobs of the engine, from which on no further request has a turn."""
        self._most = most
        self._given = Counter[str]()  # jobs that go on, by request
        self._waiting: dict[str, deque[Turn]] = {}  # by owner, the next to have a turn first

    async def wait(self, owner: str, request: str) -> None:
        """Then it is the turn of one more job of the request, until `end`."""
        if request in self._given:
            self._given[request] += 1
            return
        turns = self._waiting.setdefault(owner, deque())
        if not turns or turns[-1].request != request:
            turns.append(Turn(request, []))
        turn, job = turns[-1], asyncio.get_running_loop().create_future()
        turn.jobs.append(job)
        self._give()
        try:
            await job
        except asyncio.CancelledError:
            if job.done() and not job.cancelled():
                self.end(request)  # it was given in the same moment
            else:
                turn.jobs.remove(job)
                if not turn.jobs:
                    self._leave(owner, turn)
            raise

    def end(self, request: str) -> None:
        self._given[request] -= 1
        if not self._given[request]:
            del self._given[request]
        self._give()

    def before(self, request: str) -> int | None:
        """How many turns come before that of a request that waits; None where it does not."""
        counts = [len(turns) for turns in self._waiting.values()]
        for place, turns in enumerate(self._waiting.values()):
            for index, turn in enumerate(turns):
                if turn.request == request:
                    earlier = sum(min(count, index + 1) for count in counts[:place])
                    return earlier + index + sum(min(count, index) for count in counts[place + 1 :])
        return None

    def interrupt(self) -> None:
        """Nobody waits any more: who did may see for itself why."""
        for turn in [turn for turns in self._waiting.values() for turn in turns]:
            self._begin(turn)
        self._waiting.clear()

    def _give(self) -> None:
        while self._waiting and self._given.total() < self._most():
            owner = next(iter(self._waiting))
            turns = self._waiting.pop(owner)
            self._begin(turns.popleft())
            if turns:
                self._waiting[owner] = turns  # behind the others

    def _begin(self, turn: Turn) -> None:
        for job in turn.jobs:
            job.set_result(None)
            self._given[turn.request] += 1

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
