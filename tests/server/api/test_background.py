"""Responses made while no client waits, through the openai package: looked at, listened to, cancelled, bounded."""

import asyncio
import contextlib
import sqlite3
import weakref
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from enginehouse.runtimes.errors import Refused
from enginehouse.server import limits, sse
from enginehouse.server.api import store
from enginehouse.server.api.responses import background
from enginehouse.server.api.responses.background import Background
from enginehouse.server.api.responses.protocol import ResponseRequest
from enginehouse.server.api.responses.render import Fields, ResponseRenderer
from tests.serving import Served, serve

WORDS = "one two three four five six seven eight nine ten"
MODELS = {
    "slow": {"source": "builtin:echo", "options": {"echo": {"decode_rate": 20}}},
    "stuck": {"source": "builtin:echo", "options": {"echo": {"decode_rate": 0.01}}},
}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    keys = {"one": {"key": "one-at-a-time", "concurrent": 1}}
    many = [f"key-{number}" for number in range(limits.BACKGROUND // limits.BACKGROUND_OF_A_KEY)]
    with serve(tmp_path_factory.mktemp("house"), MODELS, api_keys=["mine", "yours", *many], keys=keys) as served:
        yield served


def client_of(served: Served, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.root}/v1", api_key=key, max_retries=0)


@pytest.fixture
def client(house: Served) -> openai.OpenAI:
    return client_of(house, "mine")


def begin(client: openai.OpenAI, model: str = "slow", **options: Any) -> Any:
    return client.responses.create(model=model, input=WORDS, background=True, **options)


def ended(client: openai.OpenAI, id: str) -> Any:
    """Listens to the end."""
    for _ in client.responses.retrieve(id, stream=True):
        pass
    return client.responses.retrieve(id)


def test_a_response_is_there_at_once_and_whole_later(client: openai.OpenAI) -> None:
    begun = begin(client)
    assert begun.status in ("queued", "in_progress")
    assert begun.background
    assert not begun.output
    whole = ended(client, begun.id)
    assert (whole.status, whole.output_text, whole.id) == ("completed", WORDS, begun.id)
    assert whole.usage.output_tokens > 0
    further = client.responses.create(model="slow", input="x", previous_response_id=begun.id)
    assert further.output_text == "x"


def test_who_listens_again_gets_what_came_since(client: openai.OpenAI) -> None:
    events = list(begin(client, stream=True))
    id = events[0].response.id
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:3]] == ["response.created", "response.queued", "response.in_progress"]
    assert events[-1].type == "response.completed"
    for after in (0, 5, len(events) - 2):
        again = list(client.responses.retrieve(id, stream=True, starting_after=after))
        assert [event.to_dict() for event in again] == [event.to_dict() for event in events[after + 1 :]]


def test_a_client_that_leaves_changes_nothing(client: openai.OpenAI) -> None:
    with begin(client, stream=True) as events:
        id = next(iter(events)).response.id
    assert ended(client, id).output_text == WORDS


def test_one_that_is_cancelled_ends_and_its_slot_is_free(house: Served, client: openai.OpenAI) -> None:
    begun = begin(client, "stuck", stream=True)
    id = next(event.response.id for event in begun if event.type == "response.in_progress")
    cancelled = client.responses.cancel(id)
    assert cancelled.status == "cancelled"
    assert [event.type for event in begun][-1] == "response.cancelled"
    assert client.responses.retrieve(id).status == "cancelled"
    assert client.responses.cancel(id).status == "cancelled"  # once more
    listed = httpx.get(f"{house.root}/v1/models", headers={"authorization": "Bearer mine"}).json()["data"]
    assert {one["id"]: one["status"]["requests"] for one in listed}["stuck"] == 0


def test_one_that_is_deleted_is_gone(client: openai.OpenAI) -> None:
    begun = begin(client, "stuck")
    client.responses.delete(begun.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(begun.id)


def test_what_has_ended_is_not_changed_by_cancelling(client: openai.OpenAI) -> None:
    begun = begin(client)
    whole = ended(client, begun.id)
    assert client.responses.cancel(begun.id) == whole
    plain = client.responses.create(model="slow", input="x")
    with pytest.raises(openai.BadRequestError, match="was not made in the background"):
        client.responses.cancel(plain.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.cancel("resp_none")


def test_another_key_finds_nothing(house: Served, client: openai.OpenAI) -> None:
    begun, other = begin(client), client_of(house, "yours")
    for look in (other.responses.retrieve, other.responses.cancel, other.responses.delete):
        with pytest.raises(openai.NotFoundError):
            look(begun.id)
    assert ended(client, begun.id).status == "completed"


def test_what_cannot_be_is_refused_by_name(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="'background' wants 'store'"):
        begin(client, store=False)
    plain = client.responses.create(model="slow", input="x")
    with pytest.raises(openai.BadRequestError, match="are not kept"):
        list(client.responses.retrieve(plain.id, stream=True))


def test_a_failure_is_told_to_who_comes_back(client: openai.OpenAI) -> None:
    begun = client.responses.create(model="slow", input="word " * 40_000, background=True)
    failed = ended(client, begun.id)
    assert failed.status == "failed"
    assert failed.error.code == "invalid_prompt"
    assert "tokens" in failed.error.message
    assert client.responses.retrieve(begun.id) == failed


def test_one_key_takes_its_part_of_the_places_and_all_keys_no_more_than_there_are(house: Served) -> None:
    clients = [client_of(house, f"key-{number}") for number in range(limits.BACKGROUND // limits.BACKGROUND_OF_A_KEY)]
    begun = []
    for one in clients:
        begun += [(one, begin(one, "stuck").id) for _ in range(limits.BACKGROUND_OF_A_KEY)]
        if one is clients[0]:
            with pytest.raises(openai.RateLimitError, match="16 responses of this key are made in the background"):
                begin(one, "stuck")
    with pytest.raises(openai.RateLimitError, match="64 responses are made in the background already") as refused:
        begin(client_of(house, "mine"), "stuck")
    assert refused.value.response.headers["retry-after"]
    for one, id in begun:
        one.responses.cancel(id)
    assert ended(clients[0], begin(clients[0]).id).status == "completed"


def test_it_counts_among_the_requests_of_its_key_until_it_ends(house: Served) -> None:
    narrow = client_of(house, "one-at-a-time")
    begun = begin(narrow, "stuck")
    with pytest.raises(openai.RateLimitError, match="1 requests at a time"):
        narrow.responses.create(model="slow", input="x")
    house_sees = client_of(house, "mine")
    assert house_sees.responses.create(model="slow", input="x").output_text == "x"
    headers = {"authorization": "Bearer one-at-a-time"}
    with httpx.stream(
        "GET", f"{house.root}/v1/responses/{begun.id}", params={"stream": True}, headers=headers, timeout=60
    ):
        pass  # to look is not to ask


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that nobody else asks."""
    with serve(tmp_path_factory.mktemp("alone"), MODELS) as served:
        yield served


def test_what_is_being_stored_when_it_is_cancelled_is_what_was_stored(alone: Served) -> None:
    client, file = alone.client, alone.cache / store.FILE
    client.responses.create(model="slow", input="x")  # there is a file
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as other, ThreadPoolExecutor(2) as threads:
        other.execute("begin immediate")  # nothing else is written meanwhile
        events = iter(begin(client, stream=True))
        id = next(events).response.id
        assert next(event for event in events if event.type == "response.output_item.done")
        asked = [threads.submit(client.responses.cancel, id) for _ in range(2)]
        arrived(alone)
        other.execute("rollback")
        answers = [one.result() for one in asked]
    assert [one.status for one in answers] == ["completed"] * 2
    assert next(events).type == "response.completed"
    assert client.responses.retrieve(id).status == "completed"


def test_two_cancels_at_once_have_one_answer(alone: Served) -> None:
    client = alone.client
    with ThreadPoolExecutor(2) as threads:
        for _ in range(5):
            events = iter(client.responses.create(model="slow", input=WORDS * 50, background=True, stream=True))
            id = next(event.response.id for event in events if event.type == "response.in_progress")
            answers = list(threads.map(client.responses.cancel, [id, id]))
            assert answers[0] == answers[1] == client.responses.retrieve(id)
            assert (answers[0].status, answers[0].store) == ("cancelled", True)  # type: ignore[attr-defined]
            assert [str(event.type) for event in events][-1] == "response.cancelled"


def arrived(served: Served) -> None:
    """What was sent before has come to its route when later ones are answered."""
    for _ in range(5):
        httpx.get(f"{served.root}/v1/models")


async def counted(numbers: int) -> AsyncGenerator[bytes, None]:
    for number in range(numbers):
        yield sse.event("response.output_text.delta", {"sequence_number": number + 2, "delta": "x" * 1000})


def renderer() -> ResponseRenderer:
    async def save(response: Fields) -> Fields:
        return response

    return ResponseRenderer(ResponseRequest("echo", "x", background=True), save)


def free() -> Callable[[], None]:
    return lambda: None


def test_events_of_one_under_way_are_bounded_and_who_wants_those_that_are_gone_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(background, "BACKGROUND_BYTES", 100_000)

    async def run() -> None:
        held = Background()
        first = held.begin("", renderer(), counted(50), free)
        assert len([event async for event in first.listen(-1)]) == 52
        second = held.begin("", renderer(), counted(1000), free)
        late = second.listen(-1)
        assert b'"sequence_number":0' in await anext(late)
        newest = [event async for event in second.listen(1001 - 20)]
        assert held.get("", first.response["id"]) is None  # it gave way
        assert second.size <= 100_000
        assert [f'"sequence_number":{number}'.encode() in event for number, event in enumerate(newest, 982)] == [
            True
        ] * 20
        (error,) = [event async for event in late]
        assert error.startswith(b"event: error")
        assert b"events_not_kept" in error
        with pytest.raises(Refused, match="not kept any more"):
            second.check(0)
        second.check(990)

    asyncio.run(run())


def test_events_of_what_has_ended_go_though_nobody_asks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "EVENTS_SECONDS", 0.01)

    async def run() -> None:
        held, gone = Background(), asyncio.Event()
        running = held.begin("", renderer(), counted(50), free)
        weakref.finalize(running, gone.set)
        del running
        await asyncio.wait_for(gone.wait(), 30)

    asyncio.run(run())


def test_a_server_that_stops_ends_them_and_says_so(tmp_path: Path) -> None:
    with serve(tmp_path, MODELS) as served:
        begun = served.client.responses.create(model="stuck", input=WORDS, background=True)
        served.process.terminate()
        served.process.wait(timeout=30)
    with serve(tmp_path, MODELS) as served:
        assert served.client.responses.retrieve(begun.id).status in ("failed", "cancelled")
