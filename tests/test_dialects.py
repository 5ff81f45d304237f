"""What the two newer dialects have in common: any answer becomes a stream that their clients put together again."""

import asyncio
import itertools
import json
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pydantic
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent

from runtimes.contract import Delta, Done, EngineFailed, Event, Logprob, Refused, Scored, ToolCall, Usage
from runtimes.engines import runtimes
from server import messages_output, responses_output
from server.answer import fail, tell
from server.blocks import collect
from server.responses_request import ResponseRequest
from tests.conftest import BUILT
from tests.serving import Served, serve

FRANCE = "What is the capital of France?"
RESPONSE_EVENT = pydantic.TypeAdapter[Any](ResponseStreamEvent)
MESSAGE_EVENT = pydantic.TypeAdapter[Any](RawMessageStreamEvent)
DONE = Done("stop", Usage(7, 5, 3, 1))
MAX_TOKENS = 5

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


async def told(deltas: list[Delta], end: Done | Exception) -> AsyncGenerator[Event, None]:
    for delta in deltas:
        yield delta
    if isinstance(end, Exception):
        raise end
    yield end


def body_of(events: AsyncGenerator[Event, None], teller: Any) -> bytes:
    async def whole() -> bytes:
        return b"".join([piece async for piece in tell(teller, events)])

    return asyncio.run(whole())


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


# --- OpenAI's responses ---

DRAFT = responses_output.draft(ResponseRequest("pocket", "hello"), "resp_1", 1)


async def keep(response: dict[str, Any]) -> dict[str, Any]:
    return response


def response_events(deltas: list[Delta], end: Done | Exception) -> bytes:
    return body_of(told(deltas, end), responses_output.Events(DRAFT, keep))


@settings(max_examples=60, deadline=None)
@given(deltas=answers, end=ends | cuts)
def test_any_answer_is_a_valid_stream_of_a_response_that_adds_up_to_the_whole_one(
    deltas: list[Delta], end: Done
) -> None:
    events = data_of(response_events(deltas, end))
    for event in events:
        assert RESPONSE_EVENT.validate_python(event).type == event["type"]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    blocks, done = asyncio.run(collect(told(deltas, end)))
    whole = responses_output.finished(DRAFT, blocks, done)
    Response.model_validate(whole)
    assert nameless(events[-1]["response"]) == nameless(whole)
    assert [event["item"] for event in events if event["type"] == "response.output_item.done"] == events[-1][
        "response"
    ]["output"]


@settings(max_examples=60, deadline=None)
@given(deltas=answers)
def test_openais_client_puts_a_response_together_from_its_deltas(
    line: Line, openais: openai.OpenAI, deltas: list[Delta]
) -> None:
    line.body = response_events(deltas, DONE)
    with openais.responses.stream(model="pocket", input="hello") as stream:
        snapshots = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    blocks, done = asyncio.run(collect(told(deltas, DONE)))
    assert nameless(final.to_dict()["output"]) == nameless(responses_output.finished(DRAFT, blocks, done)["output"])
    if snapshots:
        assert snapshots[-1] == [block.text for block in blocks if block.kind == "text"][-1]


def test_an_engine_that_breaks_in_the_middle_ends_a_response_as_failed() -> None:
    *_, last = data_of(response_events([Delta("one ")], EngineFailed("it broke")))
    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    assert last["response"]["error"] == {"code": "server_error", "message": "it broke"}
    assert last["response"]["output"][0]["content"][0]["text"] == "one "
    Response.model_validate(last["response"])


def test_a_request_that_is_refused_while_its_stream_waits_for_a_model_fails_as_a_response(
    line: Line, openais: openai.OpenAI
) -> None:
    line.body = fail(responses_output.Events(DRAFT, keep), Refused("it is too long"))
    with openais.responses.stream(model="pocket", input="hello") as stream:
        last: Any = list(stream)[-1]
    assert (last.type, last.response.error.code) == ("response.failed", "invalid_prompt")


# --- Anthropic's messages ---

MESSAGE = messages_output.draft("msg_1", "pocket")
messages: list[Any] = [{"role": "user", "content": "hello"}]


def message_events(deltas: list[Delta], end: Done | Exception) -> bytes:
    return body_of(told(deltas, end), messages_output.Events(MESSAGE, MAX_TOKENS, omit_thinking=False))


@settings(max_examples=60, deadline=None)
@given(deltas=answers, end=ends | cuts)
def test_any_answer_is_a_valid_stream_of_a_message_that_adds_up_to_the_whole_one(
    line: Line, anthropics: anthropic.Anthropic, deltas: list[Delta], end: Done
) -> None:
    line.body = message_events(deltas, end)
    for event in data_of(line.body):
        assert event["type"] == "ping" or MESSAGE_EVENT.validate_python(event).type == event["type"]
    with anthropics.messages.stream(model="pocket", messages=messages, max_tokens=MAX_TOKENS) as stream:
        final = stream.get_final_message().to_dict()
    blocks, done = asyncio.run(collect(told(deltas, end)))
    whole = messages_output.finished(MESSAGE, blocks, done, MAX_TOKENS, omit_thinking=False)
    Message.model_validate(whole)
    assert nameless(final) == nameless(whole)


def test_an_engine_that_breaks_in_the_middle_ends_a_message_with_an_error(
    line: Line, anthropics: anthropic.Anthropic
) -> None:
    line.body = message_events([Delta("one ")], EngineFailed("it broke"))
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
