"""What a key may use up, and that keys wait fairly for one another."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from enginehouse.config.load import BadConfig, load
from enginehouse.config.schema import ApiKey
from enginehouse.runtimes.pool.turns import Places, Turns
from enginehouse.server.errors import RateLimited
from enginehouse.server.rate_limits import Bucket, Use
from tests.serving import Served, serve

ECHO: dict[str, Any] = {"source": "builtin:echo", "context": 1_000_000}
KEYS = {
    "few": {"key": "few", "requests_per_minute": 2},
    "short": {"key": "short", "tokens_per_minute": 50},
    "narrow": {"key": "narrow", "concurrent": 1},
    "one": {"key": "one", "models": ["second"]},
    "slow": {"key": "slow", "priority": "batch"},
}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {"input": "hi"},
    "/v1/messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 8},
}
MANY = {f"key-{index}": {"key": f"sk-{index}"} for index in range(1000)}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    models = {"echo": ECHO, "other": ECHO | {"aliases": ["second"]}}
    with serve(tmp_path_factory.mktemp("rates"), models, keys=KEYS | MANY, api_keys=["old"]) as served:
        yield served


def ask(
    served: Served, key: str, text: str = "hi", model: str = "echo", path: str = "/v1/chat/completions"
) -> httpx.Response:
    body = {"model": model, **(BODIES.get(path) or {"messages": [{"role": "user", "content": text}]})}
    return httpx.post(served.root + path, json=body, headers={"authorization": f"Bearer {key}"}, timeout=60)


def test_requests_in_a_minute_are_counted_told_and_refused_as_openai_does(served: Served) -> None:
    ask(served, "old")  # it is loaded
    replies = [ask(served, "few") for _ in range(3)]
    assert [reply.status_code for reply in replies] == [200, 200, 429]
    assert replies[0].headers["x-ratelimit-limit-requests"] == "2"
    assert [reply.headers["x-ratelimit-remaining-requests"] for reply in replies] == ["1", "0", "0"]
    assert 0 < float(replies[1].headers["x-ratelimit-reset-requests"].removesuffix("s")) <= 60
    assert replies[2].json()["error"]["type"] == "rate_limit_error"
    assert replies[2].json()["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(replies[2].headers["retry-after"]) <= 30
    with pytest.raises(openai.RateLimitError):
        served.client.with_options(api_key="few").chat.completions.create(
            model="echo", messages=[{"role": "user", "content": "hi"}]
        )
    assert ask(served, "few", path="/v1/messages").json()["error"]["type"] == "rate_limit_error"
    assert "x-ratelimit-limit-requests" not in ask(served, "old").headers


def test_tokens_of_prompt_and_answer_count_also_of_a_stream_that_is_left(served: Served) -> None:
    first = ask(served, "short", "a" * 20)
    assert first.headers["x-ratelimit-limit-tokens"] == "50"
    body = {"model": "echo", "messages": [{"role": "user", "content": "a" * 20_000}], "stream": True}
    headers = {"authorization": "Bearer short"}
    with httpx.stream("POST", f"{served.root}/v1/chat/completions", json=body, headers=headers, timeout=60) as stream:
        assert stream.headers["x-ratelimit-remaining-tokens"] == "10"
        next(stream.iter_raw())
    refused = ask(served, "short")
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert int(refused.headers["retry-after"]) > 60


def test_requests_at_a_time_end_with_their_answer_or_their_client(served: Served) -> None:
    body = {"model": "echo", "messages": [{"role": "user", "content": "a" * 200_000}], "stream": True}
    headers = {"authorization": "Bearer narrow"}
    with httpx.stream("POST", f"{served.root}/v1/chat/completions", json=body, headers=headers, timeout=60) as stream:
        pieces = stream.iter_raw()
        next(pieces)
        assert "1 requests at a time" in ask(served, "narrow").json()["error"]["message"]
    while (reply := ask(served, "narrow")).status_code == 429:
        pass
    assert reply.status_code == 200
    assert ask(served, "narrow", model="nobody").status_code == 404
    assert ask(served, "narrow").status_code == 200


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/messages", "/v1/messages/count_tokens", "/api/chat", "/v1/embeddings"]
)
def test_a_key_uses_only_the_models_that_it_may(served: Served, path: str) -> None:
    refused = ask(served, "one", path=path)
    assert refused.status_code == 403
    assert "may not use the model 'echo'" in refused.text
    listed = served.client.with_options(api_key="one").models.list()
    assert [model.id for model in listed] == ["other"]
    assert ask(served, "one", model="other").status_code == 200
    assert ask(served, "one", model="second").status_code == 200
    assert ask(served, "one", model="other:latest", path="/api/chat").status_code == 200


def test_of_a_thousand_keys_each_lets_in(served: Served) -> None:
    assert {ask(served, f"sk-{index}").status_code for index in (0, 500, 999)} == {200}
    assert ask(served, "sk-1000").status_code == 401


def test_a_key_that_names_no_model_of_the_config_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "enginehouse.yaml"
    keys = {"a": {"key": "secret", "models": ["nobody"]}}
    file.write_text(json.dumps({"server": {"keys": keys}, "models": {"echo": {"source": "builtin:echo"}}}))
    with pytest.raises(BadConfig, match="there is no model 'nobody'"):
        load(str(file), {})


@pytest.mark.parametrize("jump", [-3600.0, 3600.0], ids=["back", "on"])
def test_a_clock_that_is_set_changes_no_limit(monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    now, wall = [1000.0], [1e9]
    monkeypatch.setattr("enginehouse.server.rate_limits.time.monotonic", lambda: now[0])
    monkeypatch.setattr("enginehouse.server.rate_limits.time.time", lambda: wall[0])
    use = Use(ApiKey("a", requests_per_minute=1))
    use.begin()
    wall[0] += jump
    with pytest.raises(RateLimited):
        use.begin()
    now[0] += 60
    use.begin()


def test_a_bucket_fills_over_a_minute_and_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("enginehouse.server.rate_limits.time.monotonic", lambda: now[0])
    bucket = Bucket(60)
    bucket.take(90)
    assert bucket.level() == -30
    assert bucket.seconds_until(1) == 31
    now[0] += 45
    assert bucket.level() == 15
    now[0] += 1000
    assert bucket.level() == 60


async def in_turn(most: int, arrivals: str) -> tuple[Turns, list[str]]:
    """Each letter asks for a turn of its own; in which order they get it."""
    turns, order = Turns(lambda: most), list[str]()

    async def one(owner: str, job: str) -> None:
        await turns.wait(owner, job)
        order.append(owner)
        turns.end(job)

    await turns.wait("first", "first")
    tasks = [asyncio.create_task(one(owner, f"{owner}{index}")) for index, owner in enumerate(arrivals)]
    await asyncio.sleep(0)
    assert [turns.before(f"{owner}{index}") is not None for index, owner in enumerate(arrivals)] == [True] * len(tasks)
    tasks[1].cancel()
    await asyncio.gather(tasks[1], return_exceptions=True)
    turns.end("first")
    await asyncio.gather(*tasks, return_exceptions=True)
    return turns, order


def test_keys_have_their_turns_one_after_the_other_and_who_leaves_none() -> None:
    turns, order = asyncio.run(in_turn(1, "aaaaabbc"))
    assert "".join(order) == "abcabaa"
    assert (turns._given.total(), turns._waiting) == (0, {})


def test_the_turns_that_come_before_one_are_told() -> None:
    async def ask() -> list[int | None]:
        turns = Turns(lambda: 0)
        tasks = [asyncio.create_task(turns.wait(job[0], job)) for job in ("a1", "a2", "a3", "b1")]
        await asyncio.sleep(0)
        before = [turns.before(job) for job in ("a1", "b1", "a3", "nobody")]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return before

    assert asyncio.run(ask()) == [0, 1, 3, None]


def test_one_key_alone_takes_half_the_places_of_a_queue() -> None:
    places, size = Places(), 100
    taken: dict[str, int] = {"a": 0, "b": 0}
    with ExitStack() as all_taken:
        for owner in taken:
            while not places.full("model", owner, size - sum(taken.values())):
                all_taken.enter_context(places.taken("model", owner))
                taken[owner] += 1
    assert taken == {"a": 50, "b": 25}


def test_a_flood_with_one_key_does_not_keep_another_waiting(tmp_path: Path) -> None:
    """The engine answers two at a time, and both keys have what they asked for in turn."""

    async def flood(served: Served) -> list[str]:
        ended: list[str] = []
        async with httpx.AsyncClient(timeout=120) as client:

            async def one(key: str) -> None:
                body = {"model": "echo", "messages": [{"role": "user", "content": "a" * 6000}]}
                headers = {"x-api-key": key}
                reply = await client.post(f"{served.root}/v1/chat/completions", json=body, headers=headers)
                assert reply.status_code == 200
                ended.append(key)

            flooding = [asyncio.create_task(one("flood")) for _ in range(30)]
            metrics = {"x-api-key": "flood"}
            while (
                'under_way{model_name="echo"} 30.0'
                not in (await client.get(f"{served.root}/metrics", headers=metrics)).text
            ):
                assert not ended
            await one("guest")
            found = list(ended)
            await asyncio.gather(*flooding)
        return found

    with serve(tmp_path, {"echo": ECHO | {"slots": 2}}, api_keys=["flood", "guest"]) as served:
        ask(served, "guest")
        ended = asyncio.run(flood(served))
    assert ended[-1] == "guest"
    assert len(ended) < 20, ended
