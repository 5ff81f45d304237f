"""A text completion as OpenAI's clients read it: the object, and the chunks of its stream."""

import codecs
import secrets
from collections import defaultdict
from collections.abc import Sequence

from enginehouse.runtimes.contract import Assigned, Done, Logprob, PromptProgress, Scored, Usage
from enginehouse.server.api import chunks, openai_types
from enginehouse.server.api.chunks import Chunks, choices_of, wants_counts
from enginehouse.server.api.completions.protocol import CompletionRequest
from enginehouse.server.content import BlockDelta, BlockStart, BlockStop, HiddenTokens, Step
from enginehouse.server.exchange import Answer
from enginehouse.server.sse import encode


class CompletionRenderer:
    def __init__(self, request: CompletionRequest) -> None:
        self.id = f"cmpl-{secrets.token_hex(12)}"
        self._chunks = Chunks("text_completion", self.id, request.model, request.stream_options, request.n)
        self._counted = wants_counts(request.stream_options)
        self._scores = defaultdict[int, Scores](Scores)  # by choice

    async def whole(self, assigned: Assigned, answers: Sequence[Answer]) -> openai_types.Completion:
        chunks = self._chunks
        return openai_types.Completion(
            self.id,
            "text_completion",
            chunks.created,
            chunks.model,
            assigned.fingerprint,
            await choices_of(choice, answers),
            chunks.usage(answers),
        )

    def start(self, assigned: Assigned | None) -> bytes:
        if assigned:
            self._chunks.place(assigned)
        return b""

    def step(self, index: int, step: Step) -> bytes:
        match step:
            case BlockDelta():
                return self._chunk(index, step.piece, step.logprobs)
            case HiddenTokens():
                return self._chunk(index, "", step.logprobs)
            case Usage():
                self._chunks.count(step)
                return b""
            case Done():
                if self._counted:
                    self._chunks.count(step.usage)
                return self._chunk(index, "", (), step.finish_reason)
            case Assigned():
                self._chunks.place(step)
                return b""
            case BlockStart() | BlockStop() | PromptProgress():
                return b""

    async def end(self, answers: Sequence[Answer]) -> bytes:
        return self._chunks.end(answers)

    def failure(self, answers: Sequence[Answer], error: Exception) -> bytes:
        return chunks.failure(error)

    def _chunk(self, index: int, text: str, logprobs: Sequence[Logprob], finish: str | None = None) -> bytes:
        scored = self._scores[index].of(logprobs) if logprobs else None
        return self._chunks.before + encode(openai_types.TextChoice(text, index, scored, finish)) + self._chunks.after


def choice(index: int, answer: Answer) -> openai_types.TextChoice:
    assert answer.done
    content = answer.content
    scored = Scores().of(content.logprobs) if content.logprobs else None
    return openai_types.TextChoice(content.text("text"), index, scored, answer.done.finish_reason)


class Scores:
    """Log-probabilities in OpenAI's older shape, piece by piece, for it says where in the text each token begins."""

    def __init__(self) -> None:
        self._offset = 0  # characters
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def of(self, logprobs: Sequence[Logprob]) -> openai_types.TextLogprobs:
        tokens, own, top, offsets = list[str](), list[float | None](), list[dict[str, float] | None](), list[int]()
        for one in logprobs:
            tokens.append(named(one.token.text))
            own.append(None if one.first else openai_types.least(one.token))
            top.append(None if one.first else alternatives([*one.top, one.token]))
            offsets.append(self._offset)
            self._offset += len(self._decode(one.token.text))
        return openai_types.TextLogprobs(tokens, own, top, offsets)


def alternatives(scored: Sequence[Scored]) -> dict[str, float]:
    """By text; of several tokens that show the same the likeliest."""
    named_scores: dict[str, float] = {}
    for one in scored:
        named_scores.setdefault(named(one.text), openai_types.least(one))
    return named_scores


def named(text: bytes) -> str:
    """As OpenAI does it: a piece of a character is written by its bytes."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in text)
