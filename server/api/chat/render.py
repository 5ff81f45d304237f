"""A chat completion as OpenAI's clients read it: the object, and the chunks of its stream."""

import functools
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import UNSET

from enginehouse.runtimes.contract import Assigned, Done, Logprob, PromptProgress, Usage
from enginehouse.server.api import chunks, openai_types
from enginehouse.server.api.chat import legacy
from enginehouse.server.api.chat.protocol import ChatRequest
from enginehouse.server.api.chunks import Chunks, choices_of, wants_counts
from enginehouse.server.api.tools import long_names
from enginehouse.server.content import Block, BlockDelta, BlockStart, BlockStop, HiddenTokens, Step
from enginehouse.server.exchange import Answer
from enginehouse.server.sse import encode


class ChatRenderer:
    """`save` stores a completion, if it is to be."""

    def __init__(self, request: ChatRequest, save: Callable[[dict[str, Any]], Awaitable[None]] | None = None) -> None:
        self._save, self._fingerprint = save, ""
        self.id = f"chatcmpl-{secrets.token_hex(12)}"
        self._chunks = Chunks("chat.completion.chunk", self.id, request.model, request.stream_options, request.n)
        self._choices, self._return_progress = request.n, request.return_progress
        self._counted = wants_counts(request.stream_options)
        self._names = long_names(tool.function.name for tool in request.tools)
        self._legacy, self._hides_thoughts = bool(request.functions), request.reasoning.exclude

    async def whole(self, assigned: Assigned, answers: Sequence[Answer]) -> openai_types.ChatCompletion:
        completion = await self._completion(answers, assigned.fingerprint)
        if self._save:
            await self._save(msgspec.to_builtins(completion))
        return completion

    async def _completion(self, answers: Sequence[Answer], fingerprint: str) -> openai_types.ChatCompletion:
        chunks = self._chunks
        return openai_types.ChatCompletion(
            self.id,
            "chat.completion",
            chunks.created,
            chunks.model,
            fingerprint,
            await choices_of(functools.partial(choice, self._names, self._legacy, self._hides_thoughts), answers),
            chunks.usage(answers),
        )

    def start(self, assigned: Assigned | None) -> bytes:
        if assigned is None:
            return b""
        self._place(assigned)
        return b"".join(each + b'{"role":"assistant","content":""}' + self._after for each in self._before)

    def step(self, index: int, step: Step) -> bytes:
        match step:
            case BlockDelta():
                if step.block.kind == "text" and not step.logprobs:  # nearly all there are
                    return self._before_text[index] + encode(step.piece) + self._after_text
                if step.block.kind == "thought" and self._hides_thoughts:
                    return b""
                if step.block.kind == "call" and self._legacy:
                    return self._chunk(index, legacy.delta("", step.piece), step.logprobs)
                return self._chunk(index, fields(step.block, step.piece), step.logprobs)
            case BlockStart():
                if step.block.kind != "call":
                    return b""
                if self._legacy:
                    return self._chunk(
                        index, legacy.delta(self._names.get(step.block.name, step.block.name), ""), step.logprobs
                    )
                call = {"index": step.block.number, **msgspec.to_builtins(call_of(step.block, "", self._names))}
                return self._chunk(index, {"tool_calls": [call]}, step.logprobs)
            case PromptProgress():
                return self._progress(index, step) if self._return_progress else b""
            case BlockStop():
                return b""
            case HiddenTokens():
                return self._chunk(index, {"content": ""}, step.logprobs)
            case Usage():
                self._count(step)
                return b""
            case Done():
                if self._counted:
                    self._count(step.usage)
                finish = b'{},"finish_reason":' + encode(self._finish(step)) + b"}"
                return self._before[index] + finish + self._chunks.after
            case Assigned():
                self._place(step)
                return b""

    async def end(self, answers: Sequence[Answer]) -> bytes:
        if self._save:
            await self._save(msgspec.to_builtins(await self._completion(answers, self._fingerprint)))
        return self._chunks.end(answers)

    def failure(self, answers: Sequence[Answer], error: Exception) -> bytes:
        return chunks.failure(error)

    def _place(self, assigned: Assigned) -> None:
        """Encodes what stands around the delta of each choice."""
        self._chunks.place(assigned)
        self._fingerprint = assigned.fingerprint
        before = self._chunks.before
        if self._counted:
            self._chunks.count(Usage(assigned.prompt_tokens, 0))
        self._after = b',"finish_reason":null}' + self._chunks.after
        self._before = [b'%b{"index":%d,"delta":' % (before, index) for index in range(self._choices)]
        self._before_text = [each + b'{"content":' for each in self._before]
        self._after_text = b"}" + self._after

    def _finish(self, done: Done) -> str:
        return legacy.finish(done.finish_reason) if self._legacy else done.finish_reason

    def _count(self, usage: Usage) -> None:
        self._chunks.count(usage)
        self._after = b',"finish_reason":null}' + self._chunks.after
        self._after_text = b"}" + self._after

    def _progress(self, index: int, prompt: PromptProgress) -> bytes:
        """As llama-server says it."""
        progress = {
            "total": prompt.prompt_tokens,
            "cache": prompt.cached,
            "processed": prompt.read or 0,
            "time_ms": round(1000 * prompt.seconds),
        }
        after = self._after.removesuffix(b"}\n\n") + b',"prompt_progress":' + encode(progress) + b"}\n\n"
        return self._before[index] + b"{}" + after

    def _chunk(self, index: int, delta: dict[str, object], logprobs: Sequence[Logprob]) -> bytes:
        scored = b',"logprobs":' + encode(openai_types.logprobs_of(logprobs)) if logprobs else b""
        return self._before[index] + encode(delta) + scored + self._after


def fields(block: Block, piece: str) -> dict[str, object]:
    match block.kind:
        case "thought":
            return {"reasoning_content": piece}
        case "text":
            return {"content": piece}
        case "call":
            return {"tool_calls": [{"index": block.number, "function": {"arguments": piece}}]}


def choice(
    names: Mapping[str, str], is_legacy: bool, hides_thoughts: bool, index: int, answer: Answer
) -> openai_types.Choice:
    assert answer.done
    content = answer.content
    text, thoughts = content.text("text"), "" if hides_thoughts else content.text("thought")
    calls = [call_of(block, block.text, names) for block in content.blocks if block.kind == "call"]
    message = openai_types.AnswerMessage(
        "assistant", None if calls and not text else text, thoughts or UNSET, calls or UNSET
    )
    finish = answer.done.finish_reason
    if is_legacy:
        called = calls[0].function if calls else UNSET
        message = msgspec.structs.replace(message, tool_calls=UNSET, function_call=called)
        finish = legacy.finish(finish)
    scored = openai_types.logprobs_of(content.logprobs) if content.logprobs else None
    return openai_types.Choice(index, message, scored, finish)


def call_of(block: Block, arguments: str, names: Mapping[str, str]) -> openai_types.ToolCall:
    function = openai_types.CalledFunction(names.get(block.name, block.name), arguments)
    return openai_types.ToolCall(f"call_{block.id}", "function", function)
