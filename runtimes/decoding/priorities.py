"""Interactive jobs before batch ones: how many of these may hold slots, and who goes on in a step beside answers that
a person waits for. They take longer for it, within bounds, and the batch goes on whatever comes."""

import math
from collections.abc import Collection, MutableMapping, Sequence
from typing import Any, TypeVar

from enginehouse.runtimes.decoding.jobs import Jobs, Running
from enginehouse.runtimes.decoding.prefill_budget import mixed

P = TypeVar("P", bound=tuple[Any, Running[Any]])  # a slot and the job in it
S = TypeVar("S")

STRETCH = 1.5  # times that a step of interactive answers alone takes, which one with batch answers may take
HELD_STRETCH = 1.75  # the same before one that answers already is sent back, where it cannot just be left out of a step
REMEMBERED = 512  # steps
LEAST_SHARE = 8  # one step of so many is the batch's, whatever it costs; and one goes without, to be timed


def batch_slots(slots: int, interactive: int) -> int:
    """That batch jobs may hold beside so many interactive ones: the next of these finds one free, and a chat the KV of
    its last turn in it."""
    return max(slots - max(interactive, 1), 0 if interactive else 1)


def may_begin(running: Running[S], active: Collection[Running[S]], jobs: Jobs[S]) -> bool:
    """Whether there is a slot for one who waits. `active`: those who hold one."""
    if len(active) >= jobs.slots or (jobs.hold and active):
        return False
    return not running.batch or sum(other.batch for other in active) < batch_slots(jobs.slots, jobs.interactive(active))


class Riders:
    """Batch jobs in steps of interactive ones."""

    def __init__(self, seconds: MutableMapping[int, float]) -> None:
        """`seconds`: of a step in which nothing is read, by how many answer in it."""
        self._seconds = seconds
        self._turn = self._noted = 0

    def note(self, answering: int, seconds: float) -> None:
        """What a step took. Now and then it is forgotten what more would take, so that it is tried again."""
        self._noted += 1
        if self._noted % REMEMBERED == 0:
            for more in [count for count in self._seconds if count > answering]:
                del self._seconds[more]
        self._seconds[answering] = mixed(self._seconds.get(answering, math.nan), seconds)

    def most(self, interactive: int, batch: int, stretch: float = STRETCH) -> int:
        """Of so many batch jobs, those that may answer beside interactive ones: none until these were timed alone, one
        more than was ever timed, else what fits."""
        if interactive not in self._seconds:
            return 0
        bound = stretch * self._seconds[interactive]
        for riders in range(1, batch + 1):
            seconds = self._seconds.get(interactive + riders, math.nan)
            if not seconds <= bound:
                return riders if math.isnan(seconds) else riders - 1
        return batch

    def step(self, answering: Sequence[P], reading: Sequence[P]) -> tuple[list[P], list[P]]:
        """Those who go on in a step, of all that could, the oldest first."""
        first = [pair for pair in answering if not pair[1].batch]
        first_reading = [pair for pair in reading if not pair[1].batch]
        riders = [pair for pair in answering if pair[1].batch]
        readers = [pair for pair in reading if pair[1].batch]
        if not (riders or readers) or not (first or first_reading):
            return list(answering), list(reading)
        self._turn = (self._turn + 1) % LEAST_SHARE
        if self._turn == 0 and (first_reading or readers):
            oldest = min((*riders[:1], *readers[:1]), key=lambda pair: pair[1].order)
            return ([*first, oldest], first_reading) if oldest in riders else (first, [oldest])
        if first_reading or self._turn == LEAST_SHARE // 2:
            return first, first_reading
        if readers and self._turn % 2:
            return first, readers
        return first + riders[: self.most(len(first), len(riders)) + (self._turn == 0)], []

    # --- where all who hold a slot answer in every step ---

    def may_begin(self, running: Running[S], active: Collection[Running[S]], jobs: Jobs[S]) -> bool:
        """As the function, and whether a step with one more batch job is not too long."""
        batch = sum(other.batch for other in active)
        fits = not running.batch or batch < self._room(active, jobs, batch + 1, STRETCH)
        return fits and may_begin(running, active, jobs)

    def in_the_way(self, active: Collection[Running[S]], jobs: Jobs[S]) -> list[Running[S]]:
        """Batch jobs that are to wait, so that interactive ones are answered as quickly as they may expect."""
        batch = sorted((other for other in active if other.batch), key=lambda other: other.order)
        if jobs.hold and not all(other.batch for other in jobs.waiting):
            return batch  # there is no room for both
        return batch[self._room(active, jobs, len(batch), HELD_STRETCH) :]

    def _room(self, active: Collection[Running[S]], jobs: Jobs[S], batch: int, stretch: float) -> int:
        """Slots for batch jobs, of which there would be so many."""
        answered = sum(not other.batch for other in active)
        room = batch_slots(jobs.slots, jobs.interactive(active))
        if not answered:
            return room
        return min(room, max(self.most(answered, batch, stretch), answered in self._seconds))
