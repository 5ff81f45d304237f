"""Server-sent events of an answer: a bytes template around each piece of text."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Protocol

import msgspec

from runtimes.contract import Delta, Done, EngineFailed, Placed, Refused, ToolCall, Unavailable
from server import replies
from server.choices import Numbered, total
from server.errors import describe

encode = msgspec.json.Encoder().encode
DONE = b"data: [DONE]\n\n"


class Head:
    """What is equal in all chunks of a response, encoded once; whole when it is known who answers."""

    begin = b""

    def __init__(self, kind: str, id: str, created: int, model: str, include_usage: bool, per_prompt: int) -> None:
        self._fields = {"id": id, "object": kind, "created": created, "model": model}
        self.end = (b',"usage":null' if include_usage else b"") + b"}\n\n"
        self._include_usage, self._per_prompt = include_usage, per_prompt

    def place(self, placed: Placed) -> None:
        self.begin = b"data: " + encode(self._fields | {"system_fingerprint": placed.fingerprint})[:-1]

    def last(self, dones: Sequence[Done]) -> bytes:
        if not self._include_usage:
            return DONE
        usage = encode(replies.usage_of(total(dones, self._per_prompt)))
        return self.begin + b',"choices":[],"usage":' + usage + b"}\n\n" + DONE


class Chunks(Protocol):
    """Renders the chunks of one choice."""

    def opening(self) -> bytes: ...
    def delta(self, delta: Delta) -> bytes: ...
    def closing(self, done: Done) -> bytes: ...


class ChatChunks:
    def __init__(self, head: Head, index: int) -> None:
        self._before = head.begin + b',"choices":[{"index":' + encode(index) + b',"delta":'
        self._end = head.end
        self._after = b',"finish_reason":null}]' + head.end
        self._text = self._before + b'{"content":'

    def opening(self) -> bytes:
        return self._before + b'{"role":"assistant","content":""}' + self._after

    def delta(self, delta: Delta) -> bytes:
        if delta.logprobs:
            scored = b',"logprobs":' + encode(replies.logprobs_of(delta.logprobs))
            return self._before + encode(self._fields(delta)) + scored + self._after
        if delta.text:
            return self._text + encode(delta.text) + b"}" + self._after
        return self._before + encode(self._fields(delta)) + self._after

    def _fields(self, delta: Delta) -> dict[str, object]:
        if delta.reasoning:
            return {"reasoning_content": delta.reasoning}
        if delta.tool_call:
            return {"tool_calls": [call_delta(delta.tool_call)]}
        return {"content": delta.text}

    def closing(self, done: Done) -> bytes:
        return self._before + b'{},"finish_reason":' + encode(done.finish_reason) + b"}]" + self._end


def chat_stream(head: Head, count: int, events: Numbered) -> AsyncGenerator[bytes, None]:
    choices: list[Chunks] = [ChatChunks(head, index) for index in range(count)]
    return stream(events, choices, head.last)


async def stream(
    events: Numbered, choices: Sequence[Chunks], last: Callable[[Sequence[Done]], bytes]
) -> AsyncGenerator[bytes, None]:
    """The body. Headers are out by now, so an error becomes an event, and another engine's name a comment."""
    async with aclosing(events):
        dones: dict[int, Done] = {}
        yield b"".join(choice.opening() for choice in choices)
        try:
            async for index, event in events:
                match event:
                    case Delta():
                        yield choices[index].delta(event)
                    case Done():
                        dones[index] = event
                        yield choices[index].closing(event)
                    case Placed(runtime, precision):
                        yield f": its engine died; {runtime} {precision} goes on\n\n".encode()
            yield last([dones[index] for index in range(len(choices))])
        except (EngineFailed, Refused, Unavailable) as error:
            yield failure(error)


def failure(error: Exception) -> bytes:
    """What ends a stream whose status is out."""
    _, body, _ = describe(error)
    return b"data: " + encode({"error": body}) + b"\n\n" + DONE


def call_delta(call: ToolCall) -> dict[str, object]:
    if not call.name:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    return {"index": call.index, **msgspec.to_builtins(replies.call_of(call.name, call.arguments))}
