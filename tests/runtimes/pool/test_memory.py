"""Who has memory_budget, who waits for it, and who makes room."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from enginehouse.config.schema import Config
from enginehouse.runtimes.errors import Unavailable
from enginehouse.runtimes.pool import memory
from enginehouse.runtimes.pool.memory import Key, Memory
from tests.serving import serve

MIB = 1 << 20


class Model:
    """As much of a loaded model as its memory takes."""

    def __init__(self, name: str, mib: int, users: int = 0, used: float = 0.0, loaded_at: float = 0.0) -> None:
        self.key, self.bytes = (name, "llamacpp/cpu/Q4_K_M"), mib * MIB
        self.users, self.used, self.loaded_at = users, used, loaded_at

    def expect(self, bytes: int) -> None:
        self.bytes += bytes


class House:
    """A budget of 1000 MiB and these models in it."""

    def __init__(self, *models: Model) -> None:
        self.models = {model.key: model for model in models}
        self.asked: dict[str, int] = {}
        config = Config(memory_budget="1000MiB", models={})
        self.memory = Memory(
            config, lambda: list(self.models.values()), lambda: 0, self.requests, self.requests, self.drop
        )

    def requests(self, name: str) -> int:
        return self.asked.get(name, 0)

    def drop(self, keys: Any) -> "asyncio.Future[list[None]]":
        for key in keys:
            del self.models[key]
        gone: asyncio.Future[list[None]] = asyncio.get_running_loop().create_future()
        gone.set_result([])
        return gone


def key(name: str) -> Key:
    return name, "llamacpp/cpu/Q4_K_M"


def test_idle_models_make_room_longest_unused_first_and_no_more_than_it_takes() -> None:
    async def body() -> None:
        house = House(Model("a", 400, used=2.0), Model("b", 400, used=1.0))
        await house.memory.reserve(key("c"), 500 * MIB, 400 * MIB)
        assert [name for name, _ in house.models] == ["a"]

    asyncio.run(body())


def test_a_model_whose_weights_can_never_fit_is_refused_at_once_with_the_numbers() -> None:
    async def body() -> None:
        house = House(Model("a", 400))
        with pytest.raises(Unavailable, match="needs at least 1200 MiB, and memory_budget is 1000 MiB"):
            await house.memory.reserve(key("c"), 1500 * MIB, 1200 * MIB)
        assert house.models

    asyncio.run(body())


def test_an_estimate_beyond_the_budget_is_tried_alone() -> None:
    async def body() -> None:
        house = House(Model("a", 10))
        await house.memory.reserve(key("c"), 1500 * MIB, 900 * MIB)
        assert not house.models

    asyncio.run(body())


def test_who_waits_for_a_busy_model_is_served_when_that_has_ended() -> None:
    async def body() -> None:
        busy = Model("a", 800, users=1)
        house = House(busy)
        waiting = asyncio.create_task(house.memory.reserve(key("b"), 500 * MIB, 400 * MIB))
        await asyncio.sleep(0)
        assert not waiting.done()
        assert house.memory.waiting("b") == "waiting for memory that is in use by 'a'"
        busy.users = 0
        house.memory.changed()
        await waiting
        assert not house.models
        assert house.memory.waiting("b") is None

    asyncio.run(body())


def test_a_model_that_others_keep_busy_makes_room_once_it_has_had_its_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def body() -> None:
        monkeypatch.setattr(memory, "TURN_SECONDS", 0.0)
        busy = Model("a", 800, users=1, loaded_at=time.monotonic())
        house = House(busy)
        house.asked["a"] = 3
        assert not house.memory.yields(busy)
        batch = asyncio.create_task(house.memory.reserve(key("batch"), 500 * MIB, 400 * MIB))
        await asyncio.sleep(0.01)
        assert not house.memory.yields(busy)  # for a batch
        batch.cancel()
        house.asked["b"] = 1
        waiting = asyncio.create_task(house.memory.reserve(key("b"), 500 * MIB, 400 * MIB))
        await asyncio.sleep(0.01)
        assert house.memory.yields(busy)
        assert not waiting.done()
        busy.users = 0  # what ran has ended, and nobody else was let in, though two ask for it still
        house.memory.changed()
        await waiting
        assert not house.models

    asyncio.run(body())


def test_who_gives_up_waiting_holds_nobody_up() -> None:
    async def body() -> None:
        house = House(Model("a", 800, users=1))
        waiting = asyncio.create_task(house.memory.reserve(key("b"), 500 * MIB, 400 * MIB))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert house.memory.waiting("b") is None

    asyncio.run(body())


def test_two_that_grow_at_once_do_not_get_the_same_memory() -> None:
    async def body() -> None:
        first, second = Model("a", 300, users=1), Model("b", 300, users=1)
        house = House(first, second)
        assert await house.memory.grant(first, 300 * MIB)
        assert not await house.memory.grant(second, 300 * MIB)
        assert await house.memory.grant(second, 50 * MIB)

    asyncio.run(body())


def test_an_idle_model_makes_room_for_one_that_grows() -> None:
    async def body() -> None:
        busy = Model("a", 300, users=1, used=1.0)
        house = House(busy, Model("b", 600, used=2.0))
        assert await house.memory.grant(busy, 500 * MIB)
        assert [name for name, _ in house.models] == ["a"]

    asyncio.run(body())


def test_what_has_grown_beyond_the_budget_makes_idle_ones_leave_but_never_the_last_used() -> None:
    async def body() -> None:
        house = House(Model("a", 700, used=2.0), Model("b", 600, used=1.0))
        house.memory.settle()
        assert [name for name, _ in house.models] == ["a"]
        house.models[key("a")].bytes = 2000 * MIB
        house.memory.settle()
        assert house.models

    asyncio.run(body())


# --- served ---


def test_two_models_of_which_one_fits_answer_everybody_in_turn(folder: Path) -> None:
    slow = {"source": "builtin:echo", "options": {"echo": {"decode_rate": 40}}, "slots": 2}
    with serve(folder, {"a": slow, "b": slow | {"context": 1024}}, memory_budget="60MiB") as served:

        def said(turn: int) -> str | None:
            asked: list[Any] = [{"role": "user", "content": f"This is said in turn {turn}."}]
            return (
                served.client.chat.completions.create(model="ab"[turn % 2], messages=asked).choices[0].message.content
            )

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(said, range(8))) == [f"This is said in turn {turn}." for turn in range(8)]
        served.wait_for("unloading '")
