"""/v1/conversations, `conversation`, `truncation` and compaction of /v1/responses, through the openai package."""

import asyncio
import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginehouse.runtimes.contract import Chat
from enginehouse.runtimes.errors import Refused
from enginehouse.server.api import store
from enginehouse.server.api.responses.truncation import ANSWER_SHARE, fitted
from enginehouse.server.api.store import ResponseStore
from tests.serving import Served, serve

MODELS = {
    "echo": {"source": "builtin:echo"},
    "small": {"source": "builtin:pocket", "runtime": "llamacpp", "context": 256},
    "pocket": {"source": "builtin:pocket", "runtime": "llamacpp"},
}


NAMED: Any = [
    {"role": "user", "content": "My name is Anna."},
    {"role": "assistant", "content": "Nice to meet you, Anna!"},
]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(tmp_path_factory.mktemp("house"), MODELS, api_keys=["mine", "yours"]) as served:
        yield served


@pytest.fixture
def client(house: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{house.root}/v1", api_key="mine", max_retries=0)


def user(text: str) -> Any:
    return {"role": "user", "content": text}


def texts(items: Any) -> list[str]:
    return [item.content[0].text for item in items]


def test_a_conversation_goes_on_from_what_was_said_in_it(client: openai.OpenAI) -> None:
    conversation = client.conversations.create(items=NAMED, metadata={"topic": "names"})
    for question in ("What is my name?", "What is the capital of France?"):
        reply = client.responses.create(model="pocket", input=question, conversation=conversation.id, temperature=0)
        assert reply.conversation
        assert reply.conversation.id == conversation.id
    items = client.conversations.items.list(conversation.id, order="asc").data
    assert texts(items)[:3] == ["My name is Anna.", "Nice to meet you, Anna!", "What is my name?"]
    assert "Anna" in texts(items)[3]
    assert [item.role for item in items] == ["user", "assistant"] * 3  # type: ignore[union-attr]


def test_a_stream_and_one_that_is_not_stored_are_said_too(client: openai.OpenAI) -> None:
    id = client.conversations.create().id
    list(client.responses.create(model="echo", input="first", conversation=id, stream=True))
    client.responses.create(model="echo", input="second", conversation={"id": id}, store=False)
    begun = client.responses.create(model="echo", input="third", conversation=id, background=True)
    list(client.responses.retrieve(begun.id, stream=True))
    said = texts(client.conversations.items.list(id, order="asc").data)
    assert said == ["first", "first", "second", "second", "third", "third"]


def test_a_conversation_is_described_changed_and_ended(client: openai.OpenAI) -> None:
    made = client.conversations.create(metadata={"a": "b"})
    assert made.metadata == {"a": "b"}
    assert client.conversations.update(made.id, metadata={"c": "d"}).metadata == {"c": "d"}
    assert client.conversations.retrieve(made.id).metadata == {"c": "d"}
    assert client.conversations.delete(made.id).deleted
    for look in (client.conversations.retrieve, client.conversations.delete, client.conversations.items.list):
        with pytest.raises(openai.NotFoundError, match="Conversation with id"):
            look(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="echo", input="x", conversation=made.id)


def test_items_are_added_read_page_by_page_and_taken_out(client: openai.OpenAI) -> None:
    id = client.conversations.create().id
    added = client.conversations.items.create(id, items=[user(str(number)) for number in range(5)]).data
    assert texts(added) == ["0", "1", "2", "3", "4"]
    page = client.conversations.items.list(id, limit=2)
    assert texts(page.data) == ["4", "3"]
    assert texts(client.conversations.items.list(id, limit=2, after=str(page.data[-1].id)).data) == ["2", "1"]
    second = added[1].id
    assert second
    assert texts([client.conversations.items.retrieve(second, conversation_id=id)]) == ["1"]
    client.conversations.items.delete(second, conversation_id=id)
    assert texts(client.conversations.items.list(id, order="asc").data) == ["0", "2", "3", "4"]
    for look in (client.conversations.items.retrieve, client.conversations.items.delete):
        with pytest.raises(openai.NotFoundError):
            look(second, conversation_id=id)


def test_another_key_finds_no_conversation(house: Served, client: openai.OpenAI) -> None:
    id = client.conversations.create(items=[user("a secret")]).id
    other = openai.OpenAI(base_url=f"{house.root}/v1", api_key="yours", max_retries=0)
    asks: list[Any] = [
        lambda: other.conversations.retrieve(id),
        lambda: other.conversations.update(id, metadata={}),
        lambda: other.conversations.delete(id),
        lambda: other.conversations.items.list(id),
        lambda: other.conversations.items.create(id, items=[user("x")]),
        lambda: other.responses.create(model="echo", input="x", conversation=id),
    ]
    for ask in asks:
        with pytest.raises(openai.NotFoundError):
            ask()
    assert texts(client.conversations.items.list(id).data) == ["a secret"]


def test_what_another_key_made_is_neither_compacted_nor_referred_to(house: Served, client: openai.OpenAI) -> None:
    secret: Any = client.responses.create(model="echo", input=[user("a secret")])
    (given,) = client.responses.input_items.list(secret.id).data
    other = openai.OpenAI(base_url=f"{house.root}/v1", api_key="yours", max_retries=0)
    with pytest.raises(openai.BadRequestError, match=f"Previous response with id '{secret.id}' not found"):
        other.responses.compact(model="echo", previous_response_id=secret.id)
    for id in (given.id, secret.output[0].id):
        reference: Any = [{"type": "item_reference", "id": id}]
        for ask in (other.responses.create, other.responses.compact):
            with pytest.raises(openai.BadRequestError, match=f"Item with id '{id}' not found"):
                ask(model="echo", input=reference)
    with pytest.raises(openai.NotFoundError):
        other.responses.input_items.list(secret.id)
    mine: Any = [{"type": "item_reference", "id": given.id}]
    assert client.responses.create(model="echo", input=mine).output_text == "a secret"


def test_an_item_is_once_in_a_conversation(client: openai.OpenAI) -> None:
    once: Any = user("once") | {"id": "msg_once"}
    with pytest.raises(openai.BadRequestError, match="'msg_once' is in this conversation already"):
        client.conversations.create(items=[once, once])
    id = client.conversations.create(items=[once]).id
    with pytest.raises(openai.BadRequestError, match="'msg_once' is in this conversation already"):
        client.conversations.items.create(id, items=[user("new"), once])
    with pytest.raises(openai.BadRequestError, match="'msg_once' is in this conversation already"):
        client.responses.create(model="echo", input=[once], conversation=id)
    assert texts(client.conversations.items.list(id).data) == ["once"]
    client.conversations.items.delete("msg_once", conversation_id=id)
    assert client.responses.create(model="echo", input=[once], conversation=id).output_text == "once"
    assert client.conversations.create(items=[once]).id  # each has its own


def test_a_conversation_that_is_full_says_so_before_anything_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "CONVERSATION_ITEMS", 3)
    monkeypatch.setattr(store, "CONVERSATION_BYTES", 1000)
    monkeypatch.setattr(store, "CONVERSATIONS_BYTES", 2500)
    monkeypatch.setattr(store, "CONVERSATIONS", 3)
    kept, items = ResponseStore(str(tmp_path)), [{"id": str(number)} for number in range(5)]
    large = [{"id": "large", "text": "x" * 900}]
    kept.begin_conversation("mine", "a", {}, items[:2])
    kept.check_room("mine", "a", items[2:3])
    for add in (kept.check_room, kept.say):
        with pytest.raises(Refused, match="takes 3 items and 1000 bytes at most, and would have 4 items"):
            add("mine", "a", items[2:4])
        with pytest.raises(Refused, match=r"would have 3 items of 10\d\d bytes"):
            add("mine", "a", [{"id": "large", "text": "x" * 980}])
    assert kept.say("mine", "a", items[:5], answered=True)  # what was answered is not lost
    assert kept.said("mine", "a") == items
    for item in ("0", "1", "2", "3"):
        assert kept.unsay("mine", "a", item)
    assert kept.say("mine", "a", large)
    kept.begin_conversation("mine", "b", {}, large)
    with pytest.raises(Refused, match="2500 are kept at most"):
        kept.begin_conversation("mine", "c", {}, large)
    kept.begin_conversation("yours", "d", {}, large)  # has room of its own
    assert kept.end_conversation("mine", "a")
    kept.begin_conversation("mine", "e", {}, [])
    kept.begin_conversation("mine", "f", {}, [])
    with pytest.raises(Refused, match="3 conversations are kept already"):
        kept.begin_conversation("mine", "g", {}, [])


def test_a_page_of_a_long_conversation_is_read_without_the_rest_of_it(client: openai.OpenAI, house: Served) -> None:
    id = client.conversations.create(items=[user(str(number)) for number in range(20)]).id
    with contextlib.closing(sqlite3.connect(house.cache / store.FILE)) as file, file:
        broken = "update said set body = 'no JSON' where conversation = ? and place not in (select place from said "
        file.execute(f"{broken}where conversation = ? order by place limit 3)", (id, id))
    page = client.conversations.items.list(id, order="asc", limit=3)
    assert (texts(page.data), page.has_more) == (["0", "1", "2"], True)
    assert texts([client.conversations.items.retrieve(str(page.data[1].id), conversation_id=id)]) == ["1"]
    with pytest.raises(openai.BadRequestError, match="there is no item 'none'"):
        client.conversations.items.list(id, after="none")


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/conversations", {"items": [user("x")] * 21}, "items"),
        ("/v1/conversations", {"items": [{"type": "computer_call", "id": "x"}]}, "computer_call"),
        ("/v1/conversations", {"nonsense": 1}, "nonsense"),
        (
            "/v1/responses",
            {"model": "echo", "input": "x", "conversation": "c", "previous_response_id": "r"},
            "conversation",
        ),
        ("/v1/responses/compact", {"model": "echo"}, "input"),
        ("/v1/responses/compact", {"model": "echo", "input": []}, "input"),
        ("/v1/responses", {"input": [{"type": "compaction", "encrypted_content": "gAAAforeign"}]}, "encrypted_content"),
    ],
)
def test_what_cannot_be_is_refused_by_name(house: Served, path: str, body: Any, field: str) -> None:
    if path == "/v1/responses":
        body = {"model": "echo", "input": "x"} | body
    reply = httpx.post(f"{house.root}{path}", json=body, headers={"authorization": "Bearer mine"}, timeout=60)
    assert reply.status_code == 400
    assert field in reply.json()["error"]["message"]


def test_a_conversation_that_is_too_long_loses_turns_of_its_middle_and_that_is_said(client: openai.OpenAI) -> None:
    spoken = [user("keep the first")]
    for number in range(30):
        spoken += [{"role": "assistant", "content": f"answer {number}"}, user(f"question {number}")]
    with pytest.raises(openai.BadRequestError, match="context"):
        client.responses.create(model="small", input=spoken)
    raw = client.responses.with_raw_response.create(model="small", input=spoken, truncation="auto")
    reply: Any = raw.parse()
    assert reply.truncation == "auto"
    left_out, _, of = raw.headers["x-enginehouse-turns-left-out"].partition(" of ")
    assert (0 < int(left_out) < 30, of) == (True, "31")
    assert reply.usage.input_tokens <= 256 * 7 / 8
    short = client.responses.with_raw_response.create(model="small", input="x", truncation="auto")
    assert "x-enginehouse-turns-left-out" not in short.headers


@given(
    words=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    context=st.integers(20, 200),
    head=st.booleans(),
    answer=st.none() | st.integers(1, 300),
)
def test_as_few_turns_are_left_out_as_make_it_fit(
    words: list[int], context: int, head: bool, answer: int | None
) -> None:
    messages = [{"role": "system", "content": "s"}] if head else []
    for number, length in enumerate(words):
        messages += [user(f"{number} " * length), {"role": "assistant", "content": f"{number}"}]

    async def count(prompt: Chat) -> int:
        return sum(len(message["content"].split()) for message in prompt.messages)

    whole = Chat(messages)
    prompt, dropped, turns = asyncio.run(fitted(whole, asyncio.run(count(whole)), context, answer, count))
    most = context - min(answer or context // ANSWER_SHARE, context // 2)
    kept = [message for message in prompt.messages if message["role"] == "user"]
    assert turns == len(words)
    assert len(kept) == turns - dropped
    assert prompt.messages[: int(head)] == messages[: int(head)]
    assert prompt.messages[-2:] == messages[-2:]
    if dropped < turns - 1:
        assert asyncio.run(count(prompt)) <= most
        assert not dropped or prompt.messages[int(head) : int(head) + 2] == messages[int(head) : int(head) + 2]
    if dropped == 1:
        assert asyncio.run(count(whole)) > most


def test_a_conversation_is_compacted_into_an_item_that_goes_on_in_its_place(client: openai.OpenAI) -> None:
    compacted = client.responses.compact(model="pocket", input=NAMED)
    assert compacted.object == "response.compaction"
    (item,) = compacted.output
    assert item.type == "compaction"
    assert compacted.usage.input_tokens > 0
    after: Any = [item.to_dict(), user("What is the capital of France?")]
    counts = [
        client.responses.input_tokens.count(model="pocket", input=input).input_tokens for input in (after, after[1:])
    ]
    assert counts[0] > counts[1] + 10
    assert client.responses.create(model="pocket", input=after).output_text


def test_what_a_response_went_on_from_is_compacted_with_it(client: openai.OpenAI) -> None:
    first: Any = client.responses.create(model="pocket", input="Tell me a story. " * 20)
    compacted = client.responses.compact(model="pocket", previous_response_id=first.id)
    assert compacted.usage.input_tokens > first.usage.input_tokens


def test_a_conversation_longer_than_the_context_is_compacted_without_turns_of_its_middle(client: openai.OpenAI) -> None:
    spoken = [user("keep the first")]
    for number in range(60):
        spoken += [{"role": "assistant", "content": f"answer {number}"}, user(f"question {number}")]
    raw = client.responses.with_raw_response.compact(model="small", input=spoken)
    left_out, _, of = raw.headers["x-enginehouse-turns-left-out"].partition(" of ")
    assert (0 < int(left_out) < 60, of) == (True, "62")  # with the request for a summary
    assert raw.parse().output[0].type == "compaction"
    with pytest.raises(openai.BadRequestError, match="context"):  # nothing of it would be left
        client.responses.compact(model="small", input="word " * 2000)
    short = client.responses.with_raw_response.compact(model="small", input="x")
    assert "x-enginehouse-turns-left-out" not in short.headers
