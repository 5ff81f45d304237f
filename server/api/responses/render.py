"""A response as OpenAI's clients read it: the object, its items, and the events of its stream."""

import itertools
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec

from enginehouse.runtimes.contract import Assigned, Done, Logprob, PromptProgress, Usage
from enginehouse.server import sse
from enginehouse.server.api import openai_types
from enginehouse.server.api.responses.custom_input import CustomInput, free_input
from enginehouse.server.api.responses.protocol import ResponseRequest, conversation_id
from enginehouse.server.api.responses.tools import Offered, Toolset
from enginehouse.server.api.sealed import sealed
from enginehouse.server.content import Block, BlockDelta, BlockStart, BlockStop, HiddenTokens, Step
from enginehouse.server.errors import describe
from enginehouse.server.exchange import Answer

Fields = dict[str, Any]
NO_TOOLS = Toolset()
Functions = Mapping[str, Offered]  # by their names
# Of the codes that OpenAI's schema has for a failed response.
FAILURES = {400: "invalid_prompt", 429: "rate_limit_exceeded"}


def draft(request: ResponseRequest, id: str, created: int, tools: Toolset = NO_TOOLS) -> Fields:
    """An empty response."""
    return {
        "id": id,
        "object": "response",
        "created_at": created,
        "completed_at": None,
        "conversation": {"id": conversation_id(request)} if request.conversation else None,
        "status": "in_progress",
        "background": request.background,
        "error": None,
        "frequency_penalty": request.frequency_penalty,
        "incomplete_details": None,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": request.max_tool_calls,
        "metadata": request.metadata,
        "model": request.model,
        "output": [],
        "parallel_tool_calls": request.parallel_tool_calls,
        "presence_penalty": request.presence_penalty,
        "previous_response_id": request.previous_response_id,
        "prompt_cache_key": request.prompt_cache_key,
        "reasoning": {"effort": request.reasoning.effort, "summary": None},
        "safety_identifier": request.safety_identifier,
        "service_tier": "default",
        "store": request.store,
        "temperature": request.temperature,
        "text": text_fields(request),
        "tool_choice": request.tool_choice
        if isinstance(request.tool_choice, str)
        else msgspec.to_builtins(request.tool_choice),
        "tools": tools.sent,
        "top_logprobs": request.top_logprobs or 0,
        "top_p": request.top_p,
        "truncation": request.truncation or "disabled",
        "usage": None,
    }


def text_fields(request: ResponseRequest) -> Fields:
    return {"format": msgspec.to_builtins(request.text.format), "verbosity": request.text.verbosity or "medium"}


def finished(draft: Fields, output: list[Fields], done: Done) -> Fields:
    cut = done.finish_reason == "length"
    return draft | {
        "status": "incomplete" if cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "completed_at": None if cut else int(time.time()),
        "output": output,
        "usage": usage_fields(done.usage),
    }


def failed(draft: Fields, output: list[Fields], error: Exception) -> Fields:
    """It is not stored, unless someone may come back for it: nothing can go on from it."""
    status, body, _ = describe(error)
    failure = {"code": FAILURES.get(status, "server_error"), "message": body.message}
    return draft | {"status": "failed", "store": draft["background"], "error": failure, "output": output}


def item(block: Block, offered: Functions, status: str = "") -> Fields:
    status = status or ("incomplete" if block.cut else "completed")
    match block.kind:
        case "call":
            return call_item(block, offered.get(block.name), status)
        case "thought":
            return {
                "id": item_id(block),
                "type": "reasoning",
                "status": status,
                "summary": [],
                "content": [part(block)],
            }
        case "text":
            message = {"role": "assistant", "content": [part(block)]}
            return {"id": item_id(block), "type": "message", "status": status} | message


def call_item(block: Block, called: Offered | None, status: str) -> Fields:
    """By the tool's name as the client has it."""
    free = called is not None and called.free
    fields = {
        "id": item_id(block),
        "type": "custom_tool_call" if free else "function_call",
        "status": status,
        "call_id": f"call_{block.id}",
        "name": called.name if called else block.name,
    }
    if called and called.namespace:
        fields["namespace"] = called.namespace
    return fields | ({"input": free_input(block.text)} if free else {"arguments": block.text})


def item_id(block: Block) -> str:
    return {"call": "fc_", "thought": "rs_", "text": "msg_"}[block.kind] + block.id


def part(block: Block) -> Fields:
    if block.kind == "thought":
        return {"type": "reasoning_text", "text": block.text}
    return {"type": "output_text", "text": block.text, "annotations": [], "logprobs": scored(block.logprobs)}


def scored(logprobs: Sequence[Logprob]) -> list[Fields]:
    fields: list[Fields] = msgspec.to_builtins(openai_types.logprobs_of(logprobs).content)
    return fields


def usage_fields(usage: Usage) -> Fields:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


class ResponseRenderer:
    """`save` stores a response, if it is to be, and gives it back as it is shown."""

    def __init__(
        self, request: ResponseRequest, save: Callable[[Fields], Awaitable[Fields]], tools: Toolset = NO_TOOLS
    ) -> None:
        self.id = f"resp_{secrets.token_hex(16)}"
        self._draft, self._save = draft(request, self.id, int(time.time()), tools), save
        self._offered, self._seals = tools.offered, "reasoning.encrypted_content" in request.include
        self._texts: dict[str, CustomInput] = {}  # of custom tools' calls, by block
        self._blocks: dict[str, tuple[Block, str]] = {}  # of the answer, each with its status, by id
        self._last: Fields = {}  # the response when it has ended
        self.settled = False  # how it ends; it may have to be stored still
        self._begun = False
        self._numbers = itertools.count()

    @property
    def response(self) -> Fields:
        """As far as it has come."""
        output = [self._item(block, status) for block, status in self._blocks.values()]
        return self._last or self._draft | {"status": "in_progress" if self._begun else "queued", "output": output}

    async def whole(self, assigned: Assigned, answers: Sequence[Answer]) -> Fields:
        return await self._finished(answers)

    def queued(self) -> bytes:
        """What is said before `start` of one that is made in the background."""
        waiting = self.response
        return self._event("response.created", response=waiting) + self._event("response.queued", response=waiting)

    def start(self, assigned: Assigned | None) -> bytes:
        self._begun = True
        created = b"" if self._draft["background"] else self._event("response.created", response=self._draft)
        return created + self._event("response.in_progress", response=self._draft)

    def step(self, index: int, step: Step) -> bytes:
        match step:
            case BlockDelta():
                return self._grew(step.block, step.piece, step.logprobs)
            case BlockStart(block):
                self._blocks[block.id] = block, "in_progress"
                return self._opened(block)
            case BlockStop(block):
                self._blocks[block.id] = block, ""
                return self._closed(block)
            case HiddenTokens() | PromptProgress() | Usage() | Assigned() | Done():
                return b""

    async def end(self, answers: Sequence[Answer]) -> bytes:
        response = await self._finished(answers)
        return self._event(f"response.{response['status']}", response=response)

    def failure(self, answers: Sequence[Answer], error: Exception) -> bytes:
        (answer,) = answers
        self.settled = True
        output = [self._item(block, "incomplete") for block in answer.content.blocks]
        self._last = failed(self._draft, output, error)
        return self._event("response.failed", response=self._last)

    async def cancelled(self) -> bytes:
        """The end of one that is wanted no more."""
        output = [self._item(block, "incomplete") for block, _ in self._blocks.values()]
        self._last = await self._save(self._draft | {"status": "cancelled", "output": output})
        return self._event("response.cancelled", response=self._last)

    async def keep_failed(self) -> None:
        """Stores what failed, if someone may come back for it."""
        if self._last.get("status") == "failed":
            self._last = await self._save(self._last)

    async def _finished(self, answers: Sequence[Answer]) -> Fields:
        (answer,) = answers
        assert answer.done
        self.settled = True
        output = [self._item(block) for block in answer.content.blocks]
        self._last = await self._save(finished(self._draft, output, answer.done))
        return self._last

    def _item(self, block: Block, status: str = "") -> Fields:
        """`encrypted_content` is there once the thought is: Codex drops one that it can read, and passes this back."""
        whole = item(block, self._offered, status)
        seal = self._seals and block.kind == "thought" and status != "in_progress"
        return whole | {"encrypted_content": sealed(block.text)} if seal else whole

    def _opened(self, block: Block) -> bytes:
        """As it was when it opened: it may have grown since."""
        begun = self._item(block, "in_progress")
        empty: Fields = {key: type(begun[key])() for key in ("arguments", "input", "content") if key in begun}
        added = self._event("response.output_item.added", output_index=block.index, item=begun | empty)
        if block.kind == "call":
            return added
        blank = {"text": ""} if block.kind == "thought" else {"text": "", "logprobs": []}
        return added + self._event("response.content_part.added", **place(block), part=part(block) | blank)

    def _grew(self, block: Block, piece: str, logprobs: Sequence[Logprob]) -> bytes:
        match block.kind:
            case "call" if self._free(block):
                text = self._texts.setdefault(block.id, CustomInput()).feed(piece)
                return self._event("response.custom_tool_call_input.delta", **place(block), delta=text) if text else b""
            case "call":
                return self._event("response.function_call_arguments.delta", **place(block), delta=piece)
            case "thought":
                return self._event("response.reasoning_text.delta", **place(block), delta=piece)
            case "text":
                shown = scored(logprobs) if logprobs else []
                return self._event("response.output_text.delta", **place(block), delta=piece, logprobs=shown)

    def _closed(self, block: Block) -> bytes:
        whole = self._item(block)
        ended = self._ended(block)
        return ended + self._event("response.output_item.done", output_index=block.index, item=whole)

    def _ended(self, block: Block) -> bytes:
        where, text = place(block), block.text
        match block.kind:
            case "call" if self._free(block):
                free, kind = free_input(text), "response.custom_tool_call_input"
                shown = self._texts[block.id].letters if block.id in self._texts else 0
                rest = self._event(f"{kind}.delta", **where, delta=free[shown:]) if free[shown:] else b""
                return rest + self._event(f"{kind}.done", **where, input=free)
            case "call":
                called = self._offered.get(block.name)
                named = {"name": called.name if called else block.name, "arguments": text}
                return self._event("response.function_call_arguments.done", **where, **named)
            case "thought":
                done = self._event("response.reasoning_text.done", **where, text=text)
            case "text":
                done = self._event("response.output_text.done", **where, text=text, logprobs=scored(block.logprobs))
        return done + self._event("response.content_part.done", **where, part=part(block))

    def _free(self, block: Block) -> bool:
        return block.name in self._offered and self._offered[block.name].free

    def _event(self, kind: str, **fields: Any) -> bytes:
        return sse.event(kind, {"sequence_number": next(self._numbers), **fields})


def place(block: Block) -> Fields:
    where: Fields = {"item_id": item_id(block), "output_index": block.index}
    return where if block.kind == "call" else where | {"content_index": 0}
