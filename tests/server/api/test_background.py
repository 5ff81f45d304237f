"""Responses made while no client waits, through the openai package: looked at, listened to, cancelled, bounded."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from enginehouse.server import limits
from tests.serving import Served, serve

WORDS = "one two three four five six seven eight nine ten"
MODELS = {
    "slow": {"source": "builtin:echo", "options": {"echo": {"decode_rate": 20}}},
    "stuck": {"source": "builtin:echo", "options": {"echo": {"decode_rate": 0.01}}},
}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(tmp_path_factory.mktemp("house"), MODELS, api_keys=["mine", "yours"]) as served:
        yield served


@pytest.fixture
def client(house: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{house.root}/v1", api_key="mine", max_retries=0)


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
    begun, other = begin(client), openai.OpenAI(base_url=f"{house.root}/v1", api_key="yours", max_retries=0)
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


def test_more_than_may_be_under_way_wait_with_their_clients(client: openai.OpenAI, house: Served) -> None:
    begun = [begin(client, "stuck").id for _ in range(limits.BACKGROUND)]
    with pytest.raises(openai.RateLimitError, match="in the background already") as refused:
        begin(client, "stuck")
    assert refused.value.response.headers["retry-after"]
    for id in begun:
        client.responses.cancel(id)
    assert ended(client, begin(client).id).status == "completed"


def test_a_server_that_stops_ends_them_and_says_so(tmp_path: Path) -> None:
    with serve(tmp_path, MODELS) as served:
        begun = served.client.responses.create(model="stuck", input=WORDS, background=True)
        served.process.terminate()
        served.process.wait(timeout=30)
    with serve(tmp_path, MODELS) as served:
        assert served.client.responses.retrieve(begun.id).status in ("failed", "cancelled")
