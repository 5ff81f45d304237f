"""What the renderers have in common: any answer becomes a stream that its API's clients put together again."""

import asyncio
import itertools
import json
from collections.abc import AsyncGenerator, Iterator, Sequence
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import msgspec
import openai
import pydantic
import pytest
from anthropic.types import Message as AnthropicMessage
from anthropic.types import RawMessageStreamEvent
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent

from enginehouse.runtimes.contract import Assigned, Delta, Done, Event, Job, Logprob, Scored, Text, ToolCall, Usage
from enginehouse.runtimes.engines import runtimes
from enginehouse.runtimes.errors import EngineFailed, Refused
from enginehouse.server.api.chat.protocol import ChatRequest
from enginehouse.server.api.chat.protocol import Message as ChatMessage
from enginehouse.server.api.chat.render import ChatRenderer
from enginehouse.server.api.completions.protocol import CompletionRequest
from enginehouse.server.api.completions.render import CompletionRenderer
from enginehouse.server.api.messages.protocol import Message, MessageRequest, ThinkingConfig
from enginehouse.server.api.messages.render import MessageRenderer
from enginehouse.server.api.responses.protocol import ResponseRequest
from enginehouse.server.api.responses.render import ResponseRenderer
from enginehouse.server.api.sealed import unsealed
from enginehouse.server.exchange import Answer, Renderer, collect, failed_start, merged, stream
from enginehouse.server.keepalive import assigned_comments, first_of
from tests.conftest import BUILT
from tests.serving import Served, serve

FRANCE = "What is the capital of France?"
RESPONSE_EVENT = pydantic.TypeAdapter[Any](ResponseStreamEvent)
MESSAGE_EVENT = pydantic.TypeAdapter[Any](RawMessageStreamEvent)
DONE = Done("stop", Usage(7, 5, 3, 1))
MAX_TOKENS = 5
JOB, PLACED = Job("job", "pocket", Text("hello")), Assigned("echo", "echo", "cpu", "because", "fp_1")

pieces = st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=4)
scored = st.builds(Logprob, st.builds(Scored, st.just(5), st.binary(max_size=3), st.floats(-20, 0)))
texts = st.tuples(pieces, st.lists(scored, max_size=2)).map(
    lambda drawn: [Delta(text=piece, logprobs=drawn[1]) for piece in drawn[0]] + [Delta(logprobs=drawn[1])]
)
thoughts = pieces.map(lambda drawn: [Delta(reasoning=piece) for piece in drawn])
calls = st.dictionaries(st.text(max_size=4), st.integers() | st.text(max_size=5), max_size=3).map(
    lambda drawn: [
        Delta(tool_call=ToolCall(0, name="f")),
        *(Delta(tool_call=ToolCall(0, arguments=piece)) for piece in halves(json.dumps(drawn))),
    ]
)
answers = st.lists(texts | thoughts | calls, max_size=6).map(lambda groups: list(itertools.chain(*groups)))
ends = st.sampled_from([DONE, Done("stop", Usage(7, 5), stop="END"), Done("tool_calls", Usage(7, 5))])
cuts = st.sampled_from([Done("length", Usage(7, 5)), Done("length", Usage(7, 4))])


def halves(text: str) -> list[str]:
    return [text[: len(text) // 2], text[len(text) // 2 :]]


async def events_of(changes: Sequence[Event], end: Done | Exception) -> AsyncGenerator[Event, None]:
    yield PLACED
    for change in changes:
        yield change
    if isinstance(end, Exception):
        raise end
    yield end


def streamed(renderer: Renderer, changes: Sequence[Event], end: Done | Exception) -> bytes:
    async def body() -> bytes:
        events = merged([events_of(changes, end)])
        return b"".join([part async for part in stream(renderer, [Answer(JOB)], await first_of(events), events)])

    return asyncio.run(body())


def collected(changes: Sequence[Event], end: Done) -> Answer:
    answer = Answer(JOB)
    asyncio.run(collect([answer], merged([events_of(changes, end)])))
    return answer


def whole(renderer: Renderer, changes: Sequence[Event], end: Done) -> Any:
    """The body, as a client reads it."""
    body = asyncio.run(renderer.whole(PLACED, [collected(changes, end)]))
    return json.loads(msgspec.json.encode(body))


def data_of(body: bytes) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in body.decode().split("\n") if line.startswith("data: ")]


class Line(httpx2.BaseTransport):
    """A line to a server that says just what is written here."""

    body = b""

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, content=self.body, headers={"content-type": "text/event-stream"})


@pytest.fixture(scope="module")
def line() -> Line:
    return Line()


@pytest.fixture(scope="module")
def openais(line: Line) -> openai.OpenAI:
    return openai.OpenAI(api_key="none", http_client=httpx2.Client(transport=line))


@pytest.fixture(scope="module")
def anthropics(line: Line) -> anthropic.Anthropic:
    return anthropic.Anthropic(api_key="none", http_client=httpx2.Client(transport=line))


def nameless(value: Any) -> Any:
    """Without the ids that are drawn by lot, the clock, and what clients add."""
    if isinstance(value, dict):
        left = value.keys() - {"id", "call_id", "item_id", "completed_at", "parsed", "parsed_arguments"}
        return {key: nameless(value[key]) for key in sorted(left)}
    return [nameless(one) for one in value] if isinstance(value, list) else value


# --- OpenAI's chat and text completions ---


def chat_renderer() -> ChatRenderer:
    return ChatRenderer(ChatRequest("pocket", [ChatMessage("user", "hello")]))


def chunks_of(body: bytes) -> list[dict[str, Any]]:
    assert body.endswith(b"data: [DONE]\n\n")
    return data_of(body.removesuffix(b"data: [DONE]\n\n"))


@settings(max_examples=60, deadline=None)
@given(deltas=answers, end=ends | cuts)
def test_any_answer_is_a_stream_of_valid_chunks_that_add_up_to_the_whole_chat_completion(
    deltas: list[Delta], end: Done
) -> None:
    renderer = chat_renderer()
    chunks = chunks_of(streamed(renderer, deltas, end))
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk)
    message = whole(renderer, deltas, end)
    ChatCompletion.model_validate(message)
    (choice,) = message["choices"]
    pieces = [chunk["choices"][0] for chunk in chunks]
    given = [piece["delta"] for piece in pieces]
    text = "".join(piece.get("content") or "" for piece in given)
    calls = [call for piece in given for call in piece.get("tool_calls", [])]
    assert text == (choice["message"]["content"] or "")
    assert "".join(piece.get("reasoning_content", "") for piece in given) == choice["message"].get(
        "reasoning_content", ""
    )
    assert [
        (
            call["function"]["name"],
            "".join(more["function"]["arguments"] for more in calls if more["index"] == call["index"]),
        )
        for call in calls
        if "id" in call
    ] == [(call["function"]["name"], call["function"]["arguments"]) for call in choice["message"].get("tool_calls", [])]
    logprobs = [one for piece in pieces if piece.get("logprobs") for one in piece["logprobs"]["content"]]
    assert logprobs == (choice["logprobs"] or {"content": []})["content"]
    assert [piece["finish_reason"] for piece in pieces if piece["finish_reason"]] == [choice["finish_reason"]]


@settings(max_examples=60, deadline=None)
@given(deltas=texts, end=ends | cuts)
def test_a_text_completions_chunks_add_up_to_the_whole_one(deltas: list[Delta], end: Done) -> None:
    renderer = CompletionRenderer(CompletionRequest("pocket", "hello"))
    pieces = [chunk["choices"][0] for chunk in chunks_of(streamed(renderer, deltas, end))]
    (choice,) = whole(renderer, deltas, end)["choices"]
    assert "".join(piece["text"] for piece in pieces) == choice["text"]
    for field in ("tokens", "token_logprobs", "text_offset") if choice["logprobs"] else ():
        assert [one for piece in pieces if piece["logprobs"] for one in piece["logprobs"][field]] == choice["logprobs"][
            field
        ]


@pytest.mark.parametrize(
    "renderer", [chat_renderer(), CompletionRenderer(CompletionRequest("pocket", "hello"))], ids=["chat", "text"]
)
def test_chunks_bear_the_fingerprint_of_the_engine_that_goes_on(renderer: Renderer) -> None:
    other = Assigned("other", "int4", "cpu", "the first one died", "fp_2")
    before, after = streamed(renderer, [Delta("one "), other, Delta("two")], DONE).split(
        b": its engine died; another goes on\n\n" + assigned_comments(other)
    )
    assert {chunk["system_fingerprint"] for chunk in data_of(before)} == {"fp_1"}
    assert {chunk["system_fingerprint"] for chunk in chunks_of(after)} == {"fp_2"}


def test_what_was_sent_to_no_client_is_void_when_another_engine_begins_anew() -> None:
    again = Assigned("other", "int4", "cpu", "the first one died", "fp_2", again=True)
    (choice,) = whole(chat_renderer(), [Delta("one "), again, Delta("two")], DONE)["choices"]
    assert choice["message"]["content"] == "two"
    goes_on = msgspec.structs.replace(again, again=False)
    (choice,) = whole(chat_renderer(), [Delta("one "), goes_on, Delta("two")], DONE)["choices"]
    assert choice["message"]["content"] == "one two"


# --- OpenAI's responses ---


async def unsaved(response: dict[str, Any]) -> dict[str, Any]:
    return response


def response_renderer() -> ResponseRenderer:
    return ResponseRenderer(ResponseRequest("pocket", "hello"), unsaved)


@settings(max_examples=60, deadline=None)
@given(deltas=answers, end=ends | cuts)
def test_any_answer_is_a_valid_stream_of_a_response_that_adds_up_to_the_whole_one(
    deltas: list[Delta], end: Done
) -> None:
    renderer = response_renderer()
    events = data_of(streamed(renderer, deltas, end))
    for event in events:
        assert RESPONSE_EVENT.validate_python(event).type == event["type"]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    response = whole(renderer, deltas, end)
    Response.model_validate(response)
    assert nameless(events[-1]["response"]) == nameless(response)
    assert [event["item"] for event in events if event["type"] == "response.output_item.done"] == events[-1][
        "response"
    ]["output"]


@settings(max_examples=60, deadline=None)
@given(deltas=answers)
def test_openais_client_puts_a_response_together_from_its_deltas(
    line: Line, openais: openai.OpenAI, deltas: list[Delta]
) -> None:
    renderer = response_renderer()
    line.body = streamed(renderer, deltas, DONE)
    with openais.responses.stream(model="pocket", input="hello") as stream:
        snapshots = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert nameless(final.to_dict()["output"]) == nameless(whole(renderer, deltas, DONE)["output"])
    if snapshots:
        blocks = collected(deltas, DONE).content.blocks
        assert snapshots[-1] == [block.text for block in blocks if block.kind == "text"][-1]


def test_an_engine_that_breaks_in_the_middle_ends_a_response_as_failed() -> None:
    *_, last = data_of(streamed(response_renderer(), [Delta("one ")], EngineFailed("it broke")))
    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    assert last["response"]["error"] == {"code": "server_error", "message": "it broke"}
    assert last["response"]["output"][0]["content"][0]["text"] == "one "
    Response.model_validate(last["response"])


def test_a_request_that_is_refused_while_its_stream_waits_for_a_model_fails_as_a_response(
    line: Line, openais: openai.OpenAI
) -> None:
    line.body = failed_start(response_renderer(), [Answer(JOB)], Refused("it is too long"))
    with openais.responses.stream(model="pocket", input="hello") as stream:
        last: Any = list(stream)[-1]
    assert (last.type, last.response.error.code) == ("response.failed", "invalid_prompt")


# --- Anthropic's messages ---

messages: list[Any] = [{"role": "user", "content": "hello"}]


def message_renderer() -> MessageRenderer:
    return MessageRenderer(MessageRequest("pocket", [Message("user", "hello")], max_tokens=MAX_TOKENS))


@settings(max_examples=60, deadline=None)
@given(deltas=answers, end=ends | cuts)
def test_any_answer_is_a_valid_stream_of_a_message_that_adds_up_to_the_whole_one(
    line: Line, anthropics: anthropic.Anthropic, deltas: list[Delta], end: Done
) -> None:
    line.body = streamed(message_renderer(), deltas, end)
    for event in data_of(line.body):
        assert event["type"] == "ping" or MESSAGE_EVENT.validate_python(event).type == event["type"]
    with anthropics.messages.stream(model="pocket", messages=messages, max_tokens=MAX_TOKENS) as stream:
        final = stream.get_final_message().to_dict()
    message = whole(message_renderer(), deltas, end)
    AnthropicMessage.model_validate(message)
    assert nameless(final) == nameless(message)


def test_an_engine_that_breaks_in_the_middle_ends_a_message_with_an_error(
    line: Line, anthropics: anthropic.Anthropic
) -> None:
    line.body = streamed(message_renderer(), [Delta("one ")], EngineFailed("it broke"))
    with pytest.raises(anthropic.APIStatusError) as caught:
        with anthropics.messages.stream(model="pocket", messages=messages, max_tokens=MAX_TOKENS) as stream:
            stream.until_done()
    assert caught.value.body == {"type": "error", "error": {"type": "api_error", "message": "it broke"}}


# --- over every engine ---


@pytest.fixture(scope="module")
def engines(folder: Path) -> Iterator[Served]:
    pinned = {
        name: {"source": "builtin:pocket", "runtime": name, "precision": "int8", "keep_alive": "1s"} for name in BUILT
    }
    with serve(folder, pinned) as served:
        yield served


@pytest.fixture(params=BUILT)
def engine(request: Any) -> str:
    if reason := runtimes()[request.param].unavailable():
        pytest.skip(reason)
    return str(request.param)


def test_every_engine_answers_in_both_dialects_whole_and_streamed(engines: Served, engine: str) -> None:
    asked: dict[str, Any] = {"model": engine, "input": FRANCE, "temperature": 0}
    client = engines.client.with_options(timeout=300)
    assert client.responses.create(**asked).output_text == "The capital of France is Paris."
    with client.responses.stream(**asked) as stream:
        assert stream.get_final_response().output_text == "The capital of France is Paris."
    other = anthropic.Anthropic(base_url=engines.root, api_key="none", max_retries=0)
    said: list[Any] = [{"role": "user", "content": FRANCE}]
    greedy: dict[str, Any] = {"max_tokens": 50, "stop_sequences": ["Paris"], "extra_body": {"temperature": 0}}
    message = other.messages.create(model=engine, messages=said, **greedy)
    assert (message.content[0].to_dict()["text"], message.stop_sequence) == ("The capital of France is ", "Paris")
    with other.messages.stream(model=engine, messages=said, **greedy) as told:
        assert nameless(told.get_final_message().to_dict()["content"]) == nameless(message.to_dict()["content"])
    counted = other.messages.count_tokens(model=engine, messages=said).input_tokens
    assert counted == message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0)


THOUGHT = [Delta(reasoning="Let me "), Delta(reasoning="see."), Delta(text="Yes.")]


def test_a_thought_that_a_client_passes_back_unread_is_whole_in_its_seal() -> None:
    asked = ResponseRequest("pocket", "hello", include=["reasoning.encrypted_content"])
    body = streamed(ResponseRenderer(asked, unsaved), THOUGHT, DONE)
    items = [event["item"] for event in data_of(body) if event["type"] == "response.output_item.done"]
    added = [event["item"] for event in data_of(body) if event["type"] == "response.output_item.added"]
    assert unsealed(items[0]["encrypted_content"]) == "Let me see."
    assert "encrypted_content" not in added[0]
    assert "encrypted_content" not in data_of(streamed(response_renderer(), THOUGHT, DONE))[-1]["response"]["output"][0]
    assert whole(ResponseRenderer(asked, unsaved), THOUGHT, DONE)["output"][0]["encrypted_content"]


def test_a_thought_that_is_not_shown_is_in_its_signature() -> None:
    hidden = ThinkingConfig("adaptive", display="omitted")
    asked = MessageRequest("pocket", [Message("user", "hello")], max_tokens=MAX_TOKENS, thinking=hidden)
    block = whole(MessageRenderer(asked), THOUGHT, DONE)["content"][0]
    assert (block["thinking"], unsealed(block["signature"])) == ("", "Let me see.")
    deltas = [event["delta"] for event in data_of(streamed(MessageRenderer(asked), THOUGHT, DONE)) if "delta" in event]
    assert [unsealed(delta["signature"]) for delta in deltas if "signature" in delta] == ["Let me see."]
