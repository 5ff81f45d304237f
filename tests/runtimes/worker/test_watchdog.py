"""Workers that hang, and what is said of them."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager

import psutil
import pytest

from enginehouse.runtimes.contract import Done, Job, Load, Text
from enginehouse.runtimes.errors import Unavailable, WorkerDied
from enginehouse.runtimes.worker import client
from enginehouse.runtimes.worker.client import Worker
from enginehouse.runtimes.worker.protocol import Pong
from enginehouse.runtimes.worker.watchdog import Look, Watchdog

LOAD = Load("echo", "", 100, 4, 1, 0)
NOTHING: Look = Look(None, 1.0)


def verdict(looks: Iterable[Look]) -> tuple[int, str]:
    """After how many rounds a worker is given up, and why; "" if it never is."""
    watchdog = Watchdog()
    for round, look in enumerate(looks, 1):
        if reason := watchdog.judge(look):
            return round, reason
    return 0, ""


def test_a_worker_that_waits_or_gets_on_is_left_alone() -> None:
    assert verdict(Look(Pong(7, False), 1.0) for _ in range(1000)) == (0, "")
    assert verdict(Look(Pong(turns, True), 1.0) for turns in range(1, 1000)) == (0, "")
    assert verdict(Look(Pong(1, True) if n % 3 else None, float(n)) for n in range(200)) == (0, "")


def test_a_worker_that_is_silent_is_given_up_after_ten_seconds() -> None:
    assert verdict([Look(Pong(1, True), 1.0), *[NOTHING] * 100]) == (5, "it answered nothing for 10 s")


def test_a_worker_that_gets_no_further_is_given_up_after_a_minute() -> None:
    assert verdict(Look(Pong(1, True), 1.0) for _ in range(100)) == (25, "it got no further for 60 s")


def test_a_worker_that_computes_is_given_ten_minutes_for_one_step() -> None:
    round, reason = verdict(Look(None if n % 2 else Pong(1, True), 2.0 * n) for n in range(1, 1000))
    assert (round, reason) == (242, "it got no further for 600 s")


@asynccontextmanager
async def loaded() -> AsyncIterator[Worker]:
    worker = Worker("echo")
    await worker.start(LOAD, {}, lambda fraction: None)
    try:
        yield worker
    finally:
        worker.close()
        await worker.closed()


async def answer(worker: Worker) -> None:
    async with aclosing(worker.stream(Job("a", "echo", Text("hello")), [])) as events:
        async for event in events:
            if isinstance(event, Done):
                return


def test_requests_of_a_worker_that_is_stopped_hear_of_its_death(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PING_SECONDS", 0.1)

    async def ask() -> None:
        async with loaded() as worker:
            await answer(worker)
            psutil.Process(worker._process.pid).suspend()
            await answer(worker)

    with pytest.raises(WorkerDied, match="it answered nothing for 10 s"):
        asyncio.run(ask())


def test_requests_of_a_worker_that_talks_nonsense_hear_of_its_death() -> None:
    async def ask() -> None:
        async with loaded() as worker:
            assert worker._process.stdout
            worker._process.stdout.feed_data(b"\1\0\0\0\xc1")
            await answer(worker)

    with pytest.raises(WorkerDied, match="cannot be read"):
        asyncio.run(ask())


def test_a_worker_that_hears_nonsense_ends() -> None:
    async def ask() -> None:
        async with loaded() as worker:
            worker._write(b"\1\0\0\0\xc1")
            await answer(worker)

    with pytest.raises(WorkerDied, match="exit status 1"):
        asyncio.run(ask())


def test_a_load_without_progress_is_ended() -> None:
    async def start() -> None:
        worker = Worker("echo")
        try:
            await worker.start(LOAD, {}, lambda fraction: None, patience=0.001)
        finally:
            await worker.closed()

    with pytest.raises(Unavailable, match="its load made no progress"):
        asyncio.run(start())
