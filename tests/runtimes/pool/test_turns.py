"""A request's jobs have their turn together, and whoever leaves takes nobody's place."""

import asyncio
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from enginehouse.runtimes.pool.turns import Turns

MOST = 3
requests = st.tuples(st.sampled_from("abc"), st.integers(1, 4))  # whose, of how many jobs
events = st.lists(
    st.one_of(requests, st.tuples(st.just("leave"), st.integers(0, 20)), st.just(("end", 0))), max_size=40
)


@given(events)
def test_every_request_has_its_turn_whole_and_no_job_is_counted_twice(happens: list[tuple[str, int]]) -> None:
    async def run() -> None:
        turns, going = Turns(lambda: MOST), list[str]()
        jobs: list[tuple[str, asyncio.Task[None]]] = []

        async def job(owner: str, request: str) -> None:
            await turns.wait(owner, request)
            going.append(request)

        async def settle() -> None:
            for _ in range(3):
                await asyncio.sleep(0)

        for number, (what, amount) in enumerate(happens):
            if what == "end" and going:
                turns.end(going.pop(0))
            elif what == "leave" and jobs:
                jobs.pop(amount % len(jobs))[1].cancel()
            elif what in "abc":
                jobs += [(f"{what}{number}", asyncio.create_task(job(what, f"{what}{number}"))) for _ in range(amount)]
            await settle()
            waiting = Counter(request for request, task in jobs if not task.done())
            assert not waiting.keys() & set(going), "a part of a request waits while the rest goes on"
            assert not waiting or len(going) >= MOST
        while going:
            turns.end(going.pop(0))
            await settle()
        assert all(task.done() for _, task in jobs)
        assert turns.before("a0") is None

    asyncio.run(run())
