"""A message as Anthropic's clients read it: the object, the events of its stream, the shape of its errors."""

import math
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from litestar import Request, Response

from enginehouse.runtimes.contract import Assigned, Done, PromptProgress, Usage
from enginehouse.runtimes.errors import TooLong
from enginehouse.server import errors
from enginehouse.server.api.messages.protocol import MessageRequest
from enginehouse.server.api.sealed import sealed
from enginehouse.server.api.tools import long_names
from enginehouse.server.content import Block, BlockDelta, BlockStart, BlockStop, HiddenTokens, Step
from enginehouse.server.exchange import Answer
from enginehouse.server.sse import event

Fields = dict[str, Any]
Names = Mapping[str, str]
PING_SECONDS = 1.5  # between two
SIGNATURE = "unsigned"  # nothing here checks it; clients want one to pass back, and with it a thought they do not see
KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
BLOCKS = {"thought": "thinking", "text": "text", "call": "tool_use"}


def draft(id: str, model: str) -> Fields:
    """An empty message."""
    return {
        "id": id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "stop_details": None,
        "usage": {"service_tier": "standard"} | usage_fields(Usage(0, 0)),
    }


def finished(
    draft: Fields, blocks: list[Block], done: Done, max_tokens: int, omit_thinking: bool, names: Names
) -> Fields:
    content = [whole(block, omit_thinking, names) for block in blocks]
    usage = {"service_tier": "standard"} | usage_fields(done.usage)
    return draft | stop_fields(done, max_tokens) | {"content": content, "usage": usage}


def whole(block: Block, omit_thinking: bool, names: Names) -> Fields:
    match block.kind:
        case "thought":
            shown = "" if omit_thinking else block.text
            return {"type": "thinking", "thinking": shown, "signature": signature(block, omit_thinking)}
        case "text":
            return {"type": "text", "text": block.text, "citations": None}
        case "call":
            return empty(block, names) | {"input": arguments(block)}


def signature(block: Block, omit_thinking: bool) -> str:
    return sealed(block.text) if omit_thinking else SIGNATURE


def empty(block: Block, names: Names) -> Fields:
    match block.kind:
        case "thought":
            return {"type": "thinking", "thinking": "", "signature": ""}
        case "text":
            return {"type": "text", "text": "", "citations": None}
        case "call":
            name = names.get(block.name, block.name)
            return {"type": "tool_use", "id": f"toolu_{block.id}", "name": name, "input": {}}


def arguments(block: Block) -> Fields:
    """Those of a call that was cut off are no JSON, and this field must be an object."""
    try:
        return msgspec.json.decode(block.text, type=dict[str, Any])
    except msgspec.DecodeError:
        return {}


def stop_fields(done: Done, max_tokens: int) -> Fields:
    reason = {"stop": "end_turn", "tool_calls": "tool_use", "length": "max_tokens"}[done.finish_reason]
    if done.finish_reason == "length" and done.usage.completion_tokens < max_tokens:
        reason = "model_context_window_exceeded"
    if done.finish_reason == "stop" and done.stop:
        reason = "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": done.stop if reason == "stop_sequence" else None}


def usage_fields(usage: Usage) -> Fields:
    """In this dialect what was read from the cache is no part of the input tokens."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
    }


class MessageRenderer:
    def __init__(self, request: MessageRequest) -> None:
        self.id = f"msg_{secrets.token_hex(12)}"
        self._draft, self._pinged = draft(self.id, request.model), -math.inf
        self._names = long_names(tool.name for tool in request.tools)
        self._max_tokens, self._omit_thinking = request.max_tokens, request.thinking.display == "omitted"

    async def whole(self, assigned: Assigned, answers: Sequence[Answer]) -> Fields:
        (answer,) = answers
        assert answer.done
        return finished(
            self._draft, answer.content.blocks, answer.done, self._max_tokens, self._omit_thinking, self._names
        )

    def start(self, assigned: Assigned | None) -> bytes:
        usage = usage_fields(Usage(assigned.prompt_tokens if assigned else 0, 0))
        message = self._draft | {"usage": self._draft["usage"] | usage}
        return event("message_start", {"message": message}) + self._ping()

    def step(self, index: int, step: Step) -> bytes:
        match step:
            case BlockDelta():
                hidden = self._omit_thinking and step.block.kind == "thought"
                return self._ping() if hidden else delta(step.block, step.piece)
            case BlockStart(block):
                return event("content_block_start", {"index": block.index, "content_block": empty(block, self._names)})
            case BlockStop(block):
                signed = b""
                if block.kind == "thought":
                    sign = signature(block, self._omit_thinking)
                    signed = block_delta(block, {"type": "signature_delta", "signature": sign})
                return signed + event("content_block_stop", {"index": block.index})
            case Done():
                fields = {"delta": stop_fields(step, self._max_tokens), "usage": usage_fields(step.usage)}
                return event("message_delta", fields) + event("message_stop", {})
            case PromptProgress():
                return self._ping()
            case HiddenTokens() | Usage() | Assigned():
                return b""

    def _ping(self) -> bytes:
        """Once in a while, where there is nothing else to show."""
        if time.monotonic() < self._pinged + PING_SECONDS:
            return b""
        self._pinged = time.monotonic()
        return event("ping", {})

    async def end(self, answers: Sequence[Answer]) -> bytes:
        return b""

    def failure(self, answers: Sequence[Answer], error: Exception) -> bytes:
        _, body, _ = described(error)
        return event("error", body)


def delta(block: Block, piece: str) -> bytes:
    match block.kind:
        case "thought":
            return block_delta(block, {"type": "thinking_delta", "thinking": piece})
        case "text":
            return block_delta(block, {"type": "text_delta", "text": piece})
        case "call":
            return block_delta(block, {"type": "input_json_delta", "partial_json": piece})


def block_delta(block: Block, fields: Fields) -> bytes:
    return event("content_block_delta", {"index": block.index, "delta": fields})


def respond(request: Request[Any, Any, Any], error: Exception) -> Response[Fields]:
    """Every failure of these routes, and of those that Anthropic's clients ask elsewhere, in Anthropic's shape."""
    status, body, headers = described(error, errors.describe_to(request, error))
    return Response(body, status_code=status, headers=headers, media_type="application/json")


def described(
    error: Exception, openais: tuple[int, errors.ErrorBody, dict[str, str]] | None = None
) -> tuple[int, Fields, dict[str, str]]:
    status, body, headers = openais or errors.describe(error)
    kind = KINDS.get(status, "invalid_request_error" if status < 500 else "api_error")
    message = body.message
    if isinstance(error, TooLong):  # clients look for these words and numbers, and make it shorter by as much
        message = f"prompt is too long: {error.tokens} tokens > {min(error.context, error.tokens - 1)} maximum"
    fields: Fields = {"type": kind, "message": message}
    if body.param == "thread":  # the tool runner then sends whole conversations
        fields["details"] = {"error_code": "thread_unsupported_request"}
    return status, {"type": "error", "error": fields}, headers
