"""What chat and text completions have in common: several choices, and a stream of chunks."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

import msgspec

from enginehouse.runtimes.contract import Assigned, Usage
from enginehouse.runtimes.errors import Refused
from enginehouse.server.api import openai_types
from enginehouse.server.errors import describe
from enginehouse.server.exchange import Answer, large, total
from enginehouse.server.sse import encode

T = TypeVar("T")
DONE = b"data: [DONE]\n\n"


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    include_usage: bool = False
    continuous_usage_stats: bool = False  # an extension of vLLM's: in every chunk
    include_obfuscation: Literal[False] = False


def check_stream_options(stream: bool, options: StreamOptions | None) -> None:
    if options and not stream:
        raise Refused("'stream_options' is for streams; send 'stream': true", "stream_options", "invalid_value")


def wants_counts(options: StreamOptions | None) -> bool:
    return options is not None and options.continuous_usage_stats


class Chunks:
    """The stream of one response. What is equal in all its chunks is encoded once, when it is known who answers."""

    def __init__(self, kind: str, id: str, model: str, options: StreamOptions | None, per_prompt: int) -> None:
        self.id, self.created, self.model = id, int(time.time()), model
        self.before = self.after = b""  # a choice
        self._kind, self._per_prompt = kind, per_prompt
        self._include_usage = options is not None and options.include_usage

    def place(self, assigned: Assigned) -> None:
        fields = {"id": self.id, "object": self._kind, "created": self.created, "model": self.model}
        head = encode(fields | {"system_fingerprint": assigned.fingerprint})
        self.before = b"data: " + head[:-1] + b',"choices":['
        self.after = b"]" + (b',"usage":null' if self._include_usage else b"") + b"}\n\n"

    def count(self, usage: Usage) -> None:
        """What the next chunks say was used so far, for the answer that they are of."""
        self.after = b'],"usage":' + encode(openai_types.usage_of(usage)) + b"}\n\n"

    def end(self, answers: Sequence[Answer]) -> bytes:
        if not self._include_usage:
            return DONE
        return self.before + b'],"usage":' + encode(self.usage(answers)) + b"}\n\n" + DONE

    def usage(self, answers: Sequence[Answer]) -> openai_types.TokenUsage:
        return openai_types.usage_of(total(answers, self._per_prompt))


async def choices_of(choice: Callable[[int, Answer], T], answers: Sequence[Answer]) -> list[T]:
    def build() -> list[T]:
        return [choice(index, answer) for index, answer in enumerate(answers)]

    return await asyncio.to_thread(build) if large(answers) else build()


def failure(error: Exception) -> bytes:
    _, body, _ = describe(error)
    return b"data: " + encode({"error": body}) + b"\n\n" + DONE
