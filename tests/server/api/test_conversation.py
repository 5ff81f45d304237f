"""Conversations as clients send them back: what chat templates are given of them."""

import json
import time
from typing import Any

import pytest

from enginehouse.runtimes.contract import Chat
from enginehouse.runtimes.errors import Refused
from enginehouse.server.api.chat import protocol as chat
from enginehouse.server.api.conversation import Conversation
from enginehouse.server.api.messages import protocol as messages
from enginehouse.server.api.responses import protocol as responses
from enginehouse.server.api.sealed import sealed

USER = {"role": "user", "content": "hi"}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CALLED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c", "content": "1"}


def chat_of(*said: dict[str, Any]) -> list[dict[str, Any]]:
    job = chat.to_jobs(chat.read(json.dumps({"model": "m", "messages": said}).encode()), "id")[0]
    assert isinstance(job.prompt, Chat)
    return job.prompt.messages


def message_of(*said: dict[str, Any]) -> list[dict[str, Any]]:
    return messages.to_chat(
        messages.read(json.dumps({"model": "m", "max_tokens": 9, "messages": said}).encode())
    ).messages


def response_of(*said: dict[str, Any]) -> list[dict[str, Any]]:
    asked = responses.read(json.dumps({"model": "m", "input": said}).encode())
    prompt = responses.to_job(asked, [], responses.items_of(asked.input), "id").prompt
    assert isinstance(prompt, Chat)
    return prompt.messages


@pytest.mark.parametrize("read", [chat_of, message_of, response_of])
def test_an_empty_last_answer_is_answered_like_none(read: Any) -> None:
    assert read(USER, {"role": "assistant", "content": ""}) == read(USER)
    assert len(read(USER, {"role": "assistant", "content": ""}, USER)) == 3
    assert read(USER, {"role": "assistant", "content": "Once"})[-1]["content"] == "Once"


def test_a_tools_result_belongs_to_an_earlier_call() -> None:
    assert len(chat_of(USER, CALLED, RESULT)) == 3
    stray: list[list[dict[str, Any]]] = [
        [USER, CALLED, {"role": "tool", "content": "1"}],
        [USER, CALLED, RESULT | {"tool_call_id": "d"}],
        [USER, RESULT, CALLED],
    ]
    for said in stray:
        with pytest.raises(Refused, match="tool_call_id") as refused:
            chat_of(*said)
        assert str(refused.value.param).endswith(".tool_call_id")


def test_a_user_who_says_nothing_is_refused_by_name() -> None:
    with pytest.raises(Refused, match="says nothing") as refused:
        chat_of(USER, {"role": "user", "content": []})
    assert refused.value.param == "messages[1].content"


def test_a_refusal_that_is_sent_back_is_what_the_assistant_said() -> None:
    refused = {"role": "assistant", "content": None, "refusal": "I cannot."}
    assert chat_of(USER, refused, USER)[1] == {"role": "assistant", "content": "I cannot."}
    with pytest.raises(Refused, match="refusal"):
        chat_of(USER | {"refusal": "no"})


def test_system_messages_at_the_beginning_are_joined_in_time_that_grows_with_their_length() -> None:
    talk, began = Conversation(), time.perf_counter()
    talk.say("system", "a" * 1_000_000)
    for _ in range(20_000):
        talk.say("system", "b")
    talk.say("user", "hi")
    talk.say("system", "now")
    assert time.perf_counter() - began < 0.5
    head, user, later = talk.asked()
    assert head == {"role": "system", "content": "a" * 1_000_000 + "\n\nb" * 20_000}
    assert (user["content"], later) == ("hi", {"role": "system", "content": "now"})


def test_a_thought_that_its_client_did_not_read_comes_back() -> None:
    def message(**block: str) -> list[dict[str, Any]]:
        return message_of(USER, {"role": "assistant", "content": [{"type": "thinking", **block}]}, USER)

    def response(**item: Any) -> list[dict[str, Any]]:
        return response_of(USER, {"type": "reasoning", "summary": [], **item}, USER)

    thought = {"role": "assistant", "reasoning_content": "Let me see é"}
    assert message(thinking="", signature=sealed("Let me see é"))[1] == thought
    assert response(encrypted_content=sealed("Let me see é"))[1] == thought
    for foreign in ("gAAAAA", "unsigned", "enginehouse:%", "enginehouse:\u00e9"):
        assert len(message(thinking="", signature=foreign)) == len(response(encrypted_content=foreign)) == 2
