"""Server-sent events of a chat completion: a bytes template around each piece of text."""

import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec

from runtimes.contract import Delta, Done, EngineFailed, Event, Logprob, Placed, Scored, ToolCall, Unavailable, Usage
from server.errors import describe

encode = msgspec.json.Encoder().encode
DONE = b"data: [DONE]\n\n"
LEAST_LOGPROB = -9999.0


class Chunks:
    """Renders the chunks of one answer; what is equal in all of them is encoded once."""

    def __init__(self, id: str, created: int, model: str, include_usage: bool) -> None:
        head = encode({"id": id, "object": "chat.completion.chunk", "created": created, "model": model})
        self._head = b"data: " + head[:-1]
        self._before = self._head + b',"choices":[{"index":0,"delta":'
        self._after = b',"finish_reason":null}]' + (b',"usage":null' if include_usage else b"") + b"}\n\n"
        self._text = self._before + b'{"content":'
        self._include_usage = include_usage

    def opening(self) -> bytes:
        return self._before + b'{"role":"assistant","content":""}' + self._after

    def delta(self, delta: Delta) -> bytes:
        if delta.logprobs:
            scored = b',"logprobs":' + encode(logprob_fields(delta.logprobs))
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
        usage = b',"usage":null' if self._include_usage else b""
        last = self._before + b'{},"finish_reason":' + encode(done.finish_reason) + b"}]" + usage + b"}\n\n"
        if self._include_usage:
            last += self._head + b',"choices":[],"usage":' + encode(usage_fields(done.usage)) + b"}\n\n"
        return last + DONE

    async def of(self, events: AsyncGenerator[Event, None]) -> AsyncGenerator[bytes, None]:
        """The body. Headers are out by now, so an error becomes an event, and another engine's name a comment."""
        async with aclosing(events):
            yield self.opening()
            try:
                async for event in events:
                    match event:
                        case Delta():
                            yield self.delta(event)
                        case Done():
                            yield self.closing(event)
                        case Placed(runtime, precision):
                            yield f": its engine died; {runtime} {precision} goes on\n\n".encode()
            except (EngineFailed, Unavailable) as error:
                yield failure(error)


def failure(error: Exception) -> bytes:
    """What ends a stream whose status is out."""
    _, body, _ = describe(error)
    return b"data: " + encode({"error": body}) + b"\n\n" + DONE


def call_delta(call: ToolCall) -> dict[str, object]:
    if not call.name:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    return {"index": call.index, **call_fields(call.name, call.arguments)}


def call_fields(name: str, arguments: str) -> dict[str, object]:
    """A call with an id of its own."""
    function = {"name": name, "arguments": arguments}
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


def logprob_fields(logprobs: list[Logprob]) -> dict[str, object]:
    content = [
        token_fields(one.token) | {"top_logprobs": [token_fields(scored) for scored in one.top]} for one in logprobs
    ]
    return {"content": content, "refusal": None}


def token_fields(scored: Scored) -> dict[str, object]:
    logprob = max(scored.logprob, LEAST_LOGPROB)  # JSON has no -inf
    return {"token": scored.text.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(scored.text)}


def usage_fields(usage: Usage) -> dict[str, object]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }
