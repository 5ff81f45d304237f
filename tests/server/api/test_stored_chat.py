"""Chat completions that are stored, through the openai package."""

from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.serving import Served, serve

HELLO: list[Any] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]


def ask(served: Served, **options: Any) -> Any:
    return served.client.chat.completions.create(model="echo", messages=HELLO, **({"store": True} | options))


@pytest.mark.parametrize("stream", [False, True])
def test_a_stored_completion_is_retrieved_as_it_was_given_and_deleted(house: Served, stream: bool) -> None:
    completions = house.client.chat.completions
    reply = ask(house, stream=stream, metadata={"a": "b"}, n=2)
    id = [chunk.id for chunk in reply][-1] if stream else reply.id
    stored = completions.retrieve(id)
    assert [choice.message.content for choice in stored.choices] == ["hello", "hello"]
    assert (stored.id, stored.object, stored.metadata) == (id, "chat.completion", {"a": "b"})
    assert stored.usage and stored.usage.completion_tokens == 10
    if not stream:
        assert stored.model_dump(exclude={"metadata"}) == reply.model_dump(exclude={"metadata"})
    messages = completions.messages.list(id).data
    assert [(message.role, message.content) for message in messages] == [("system", "Be brief."), ("user", "hello")]
    assert completions.messages.list(id, order="desc", limit=1).data[0].id == messages[1].id
    assert completions.delete(id).deleted
    for gone in (completions.retrieve, completions.delete, completions.messages.list):
        with pytest.raises(openai.NotFoundError, match=f"Chat completion with id '{id}' not found"):
            gone(id)


def test_stored_completions_are_listed_page_by_page_by_model_and_by_metadata(house: Served) -> None:
    completions = house.client.chat.completions
    ids = [ask(house, metadata={"run": "one", "number": str(number)}).id for number in range(3)]
    ask(house, store=False, metadata={"run": "one"})
    page = completions.list(metadata={"run": "one"}, limit=2)
    assert [one.id for one in page.data] == ids[:2]
    assert [one.id for one in page] == ids  # the client asks for the next page
    assert [one.id for one in completions.list(metadata={"run": "one"}, order="desc")] == ids[::-1]
    assert [one.id for one in completions.list(metadata={"number": "1", "run": "one"})] == ids[1:2]
    assert not completions.list(model="pocket", metadata={"run": "one"}).data
    with pytest.raises(openai.BadRequestError) as caught:
        completions.list(after="nothing")
    assert caught.value.param == "after"
    with pytest.raises(openai.BadRequestError) as caught:
        completions.list(limit=101)
    assert caught.value.param == "limit"


def test_a_completion_is_no_response_and_a_response_no_completion(house: Served) -> None:
    chat, response = ask(house).id, house.client.responses.create(model="echo", input="a").id
    with pytest.raises(openai.NotFoundError):
        house.client.responses.retrieve(chat)
    with pytest.raises(openai.NotFoundError):
        house.client.chat.completions.retrieve(response)
    with pytest.raises(openai.BadRequestError):
        house.client.responses.create(model="echo", input="a", previous_response_id=chat)
    assert response not in [one.id for one in house.client.chat.completions.list()]


@pytest.mark.parametrize("metadata", [{"a": 1}, {"a": "b" * 513}, {str(number): "a" for number in range(17)}])
def test_metadata_that_openai_would_not_store_is_refused_by_name(house: Served, metadata: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(house, metadata=metadata)
    assert str(caught.value.param).startswith("metadata")


def test_what_one_key_stores_no_other_finds(tmp_path: Path) -> None:
    with serve(tmp_path, {"echo": {"source": "builtin:echo"}}, api_keys=["mine", "yours"]) as served:

        def get(path: str, key: str) -> httpx.Response:
            return httpx.get(served.root + path, headers={"x-api-key": key})

        body = {"model": "echo", "messages": HELLO, "store": True}
        route = "/v1/chat/completions"
        id = httpx.post(served.root + route, json=body, headers={"x-api-key": "mine"}, timeout=60).json()["id"]
        assert get(f"{route}/{id}", "mine").status_code == 200
        assert get(f"{route}/{id}", "yours").status_code == 404
        assert get(route, "yours").json()["data"] == []
        assert get(route, "none").status_code == 401
