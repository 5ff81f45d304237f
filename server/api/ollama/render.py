"""Answers as Ollama's clients read them: an object, or lines of them; and the shape of its errors."""

import asyncio
import datetime
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from litestar import Request, Response

from enginehouse.runtimes.contract import Assigned, Done, Logprob, PromptProgress, Usage
from enginehouse.server import errors
from enginehouse.server.api.openai_types import logprobs_of
from enginehouse.server.content import Block, BlockDelta, BlockStart, BlockStop, HiddenTokens, Step
from enginehouse.server.exchange import Answer, large
from enginehouse.server.sse import encode

Fields = dict[str, Any]
Shape = Callable[[str, str, Sequence[Fields]], Fields]  # text, thought and calls as fields of a line
LINES = "application/x-ndjson"


def as_message(text: str, thought: str = "", calls: Sequence[Fields] = ()) -> Fields:
    return {"message": {"role": "assistant", "content": text} | further(thought, calls)}


def as_response(text: str, thought: str = "", calls: Sequence[Fields] = ()) -> Fields:
    return {"response": text} | further(thought, calls)


def further(thought: str, calls: Sequence[Fields]) -> Fields:
    return ({"thinking": thought} if thought else {}) | ({"tool_calls": list(calls)} if calls else {})


class LineRenderer:
    def __init__(self, model: str, shape: Shape, names: Mapping[str, str]) -> None:
        """`model`: as the client calls it, and by `names` the tools that the model knows by others."""
        self._model, self._shape, self._names = model, shape, names

    async def whole(self, assigned: Assigned, answers: Sequence[Answer]) -> Fields:
        (answer,) = answers
        return await asyncio.to_thread(self._whole, answer) if large(answers) else self._whole(answer)

    def start(self, assigned: Assigned | None) -> bytes:
        return b""

    def step(self, index: int, step: Step) -> bytes:
        match step:
            case BlockDelta(block, piece, logprobs):
                if block.kind == "text":
                    return self._piece(self._shape(piece, "", ()), logprobs)
                if block.kind == "thought":
                    return self._piece(self._shape("", piece, ()), logprobs)
                return self._scored(logprobs)  # a call goes out whole
            case BlockStop(block):
                return self._piece(self._shape("", "", [call_of(block, self._names)])) if block.kind == "call" else b""
            case BlockStart(_, logprobs) | HiddenTokens(logprobs):
                return self._scored(logprobs)
            case PromptProgress() | Usage() | Done() | Assigned():
                return b""

    async def end(self, answers: Sequence[Answer]) -> bytes:
        (answer,) = answers
        return line(self.ended(self._shape("", "", ()), answer))

    def failure(self, answers: Sequence[Answer], error: Exception) -> bytes:
        return line(described(error)[1])

    def silence(self, text: str) -> bytes:
        """A piece of nothing, where server-sent events have a comment: clients give up on streams that stand still."""
        return self._piece(self._shape("", "", ()))

    def ended(self, fields: Fields, answer: Answer) -> Fields:
        assert answer.done
        return self._head() | fields | {"done": True} | statistics(answer.done, answer.seconds)

    def loaded(self, reason: str, seconds: float) -> Fields:
        """The answer to nothing: "load" or "unload"."""
        durations = {"total_duration": nanoseconds(seconds), "load_duration": nanoseconds(seconds)}
        return self._head() | self._shape("", "", ()) | {"done": True, "done_reason": reason} | durations

    def _whole(self, answer: Answer) -> Fields:
        content = answer.content
        calls = [call_of(block, self._names) for block in content.blocks if block.kind == "call"]
        fields = self._shape(content.text("text"), content.text("thought"), calls)
        scored = {"logprobs": logprobs_of(content.logprobs).content} if content.logprobs else {}
        return self.ended(fields, answer) | scored

    def _scored(self, logprobs: Sequence[Logprob]) -> bytes:
        return self._piece(self._shape("", "", ()), logprobs) if logprobs else b""

    def _piece(self, fields: Fields, logprobs: Sequence[Logprob] = ()) -> bytes:
        scored = {"logprobs": logprobs_of(logprobs).content} if logprobs else {}
        return line(self._head() | fields | {"done": False} | scored)

    def _head(self) -> Fields:
        return {"model": self._model, "created_at": now()}


def statistics(done: Done, seconds: float) -> Fields:
    """What was neither reading nor answering was waiting: for the model, for a slot."""
    waited = max(0.0, seconds - done.prefill_seconds - done.decode_seconds)
    return {
        "done_reason": "length" if done.finish_reason == "length" else "stop",
        "total_duration": nanoseconds(seconds),
        "load_duration": nanoseconds(waited),
        "prompt_eval_count": done.usage.prompt_tokens,
        "prompt_eval_duration": nanoseconds(done.prefill_seconds),
        "eval_count": done.usage.completion_tokens,
        "eval_duration": nanoseconds(done.decode_seconds),
    }


def call_of(block: Block, names: Mapping[str, str]) -> Fields:
    """Arguments of a call that was cut off are no JSON, and this field must be an object."""
    try:
        arguments = msgspec.json.decode(block.text, type=dict[str, Any])
    except msgspec.DecodeError:
        arguments = {}
    return {
        "id": f"call_{block.id}",
        "function": {"index": block.number, "name": names.get(block.name, block.name), "arguments": arguments},
    }


def line(fields: Fields) -> bytes:
    return encode(fields) + b"\n"


def nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


def now() -> str:
    return time_of(datetime.datetime.now(datetime.UTC))


def time_of(moment: datetime.datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


def respond(request: Request[Any, Any, Any], error: Exception) -> Response[Fields]:
    """Every failure of these routes in Ollama's shape."""
    status, body, headers = errors.describe_to(request, error)
    return Response({"error": body.message}, status_code=status, headers=headers, media_type="application/json")


def described(error: Exception) -> tuple[int, Fields, dict[str, str]]:
    status, body, headers = errors.describe(error)
    return status, {"error": body.message}, headers
