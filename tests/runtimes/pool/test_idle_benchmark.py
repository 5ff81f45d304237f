"""What is done while nobody asks, and what a request does to it."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from enginehouse.optimize.artifact import Artifact
from enginehouse.runtimes.pool import idle_benchmark
from enginehouse.runtimes.pool.idle_benchmark import IdleBenchmark
from enginehouse.runtimes.pool.routing import Candidate, Figures, Ranked

SLOW, OTHER = (Ranked(Candidate(runtime, "cpu", "int4", "any"), "", ()) for runtime in ("slow", "other"))
FIGURES = Figures(1.0, 1.0, 1.0, 1, 1.0, 1.0, 1)


class House:
    """Two candidates; building the first ends when it is told to."""

    def __init__(self) -> None:
        self.finish = asyncio.Event()
        self.builds: list[str] = []
        self.measured: list[str] = []
        self.ended = 0
        decided = SimpleNamespace(decision=SimpleNamespace(ranked=(SLOW, OTHER), unmeasured=None), source=None)
        decisions: Any = SimpleNamespace(of=lambda name: asyncio.sleep(0, decided))
        loader: Any = SimpleNamespace(building_bytes=lambda source, candidate: 0)
        self.idle = IdleBenchmark(decisions, loader, self.prepare, self.measure)

    async def prepare(self, name: str, ranked: Ranked) -> Artifact:
        self.builds.append(ranked.candidate.runtime)
        if ranked is SLOW:
            try:
                await self.finish.wait()
            finally:
                self.ended += 1
        return Artifact("any", "int4", "", 0)

    async def measure(self, name: str, ranked: Ranked) -> Figures:
        self.measured.append(ranked.candidate.runtime)
        return FIGURES

    async def pause(self) -> None:
        """Nobody asks for a while, then somebody does."""
        self.idle.start_timer()
        await asyncio.sleep(0.05)
        self.idle.note_request("m")


def test_a_build_goes_on_through_requests_and_is_measured_in_a_later_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle_benchmark, "IDLE_SECONDS", 0.0)

    async def run() -> None:
        house = House()
        house.idle.note_request("m")
        for _ in range(3):
            await house.pause()
        assert (house.builds, house.measured, house.ended) == (["slow"], [], 0)
        house.finish.set()
        await house.pause()
        assert house.builds[0] == "slow" and house.builds.count("slow") == 1
        assert house.measured[:2] == ["slow", "other"]
        await house.idle.end()

    asyncio.run(run())


def test_a_build_ends_with_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle_benchmark, "IDLE_SECONDS", 0.0)

    async def run() -> None:
        house = House()
        house.idle.note_request("m")
        await house.pause()
        await house.idle.end()
        assert house.ended == 1

    asyncio.run(run())
