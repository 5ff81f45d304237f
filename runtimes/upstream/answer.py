"""An upstream's answer, chunk by chunk, as the events of ours. Nothing in it is trusted."""

import time
from collections.abc import Iterator
from typing import Annotated

import msgspec

from enginehouse.runtimes.contract import Delta, Done, Job, Logprob, Scored, ToolCall, Usage
from enginehouse.runtimes.errors import RefusedElsewhere, UpstreamFailed, quoting

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
QUOTED = 300  # letters of what an upstream says of itself
NO_ID = -1  # of a token: upstreams tell its text alone
FINISHES = {"stop": "stop", "length": "length", "tool_calls": "tool_calls", "function_call": "tool_calls"}
MOST_CALLS = 1024


class Broken(UpstreamFailed):
    """What came is no answer in OpenAI's shape."""


class Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class Call(msgspec.Struct):
    index: Count = 0
    function: Function = msgspec.field(default_factory=Function)


class Top(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[Annotated[int, msgspec.Meta(ge=0, le=255)]] | None = None

    def scored(self) -> Scored:
        return Scored(NO_ID, self.token.encode() if self.bytes is None else bytes(self.bytes), self.logprob)


class TokenLogprob(Top):
    top_logprobs: list[Top] = []


class Logprobs(msgspec.Struct):
    content: list[TokenLogprob] | None = None


class Message(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None  # vLLM's newer name
    refusal: str | None = None
    tool_calls: list[Call] | None = None


class Choice(msgspec.Struct):
    delta: Message = msgspec.field(default_factory=Message)
    text: str | None = None  # of a text completion
    finish_reason: str | None = None
    stop_reason: int | str | None = None  # vLLM's: the stop string that was met
    logprobs: Logprobs | None = None


class PromptDetails(msgspec.Struct):
    cached_tokens: Count | None = None


class AnswerDetails(msgspec.Struct):
    reasoning_tokens: Count | None = None
    accepted_prediction_tokens: Count | None = None
    rejected_prediction_tokens: Count | None = None


class UsageFields(msgspec.Struct):
    prompt_tokens: Count = 0
    completion_tokens: Count = 0
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: AnswerDetails | None = None


class ErrorFields(msgspec.Struct):
    message: str = ""
    type: str | None = None
    param: str | None = None
    code: str | int | None = None


class Chunk(msgspec.Struct):
    model: str | None = None
    choices: list[Choice] = []
    usage: UsageFields | None = None
    error: ErrorFields | str | None = None


DECODER = msgspec.json.Decoder(Chunk)


class Reading:
    """One answer as far as it has come from one replica."""

    def __init__(self, job: Job, names: tuple[str, ...], secret: str | None) -> None:
        """`names`: what the upstream may call the model that it was asked for."""
        self._job, self._names, self._secret = job, names, secret
        self._usage: UsageFields | None = None
        self._finish, self._stop = "", ""
        self._calls: list[int] = []  # their indices there
        self._pieces = 0
        self._began, self._first = time.monotonic(), 0.0

    @property
    def finished(self) -> bool:
        return bool(self._finish)

    def take(self, data: bytes) -> Iterator[Delta]:
        """What a line of the stream brings. Raises Refused or UpstreamFailed for what it should not."""
        try:
            chunk = DECODER.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Broken(f"the upstream's stream is broken: {error}") from None
        if chunk.error:
            raise failure(chunk.error, self._secret)
        if chunk.model and not any(same(chunk.model, name) for name in self._names):
            raise Broken(
                f"the upstream answers as '{quoted(chunk.model, self._secret)}' and was asked for '{self._names[0]}'; "
                "where that is the same model, name it in 'upstream.answers_as'"
            )
        self._usage = chunk.usage or self._usage
        tokens = chunk.usage.completion_tokens if self._job.counted and chunk.usage else 0
        for choice in chunk.choices[:1]:
            for delta in self._deltas(choice, tokens):
                self._first = self._first or time.monotonic()
                self._pieces += 1
                yield delta
            if choice.finish_reason:
                if choice.finish_reason not in FINISHES:
                    raise Broken(f"the upstream ended its answer for '{quoted(choice.finish_reason, self._secret)}'")
                self._finish = FINISHES[choice.finish_reason]
                met = choice.stop_reason
                self._stop = met if isinstance(met, str) and met in self._job.sampling.stop else ""

    def done(self) -> Done:
        """The end, once it is `finished`. Where no usage came, the pieces of the answer are counted."""
        usage, now = self._usage or UsageFields(0, self._pieces), time.monotonic()
        prompt, answer = (
            usage.prompt_tokens_details or PromptDetails(),
            usage.completion_tokens_details or AnswerDetails(),
        )
        counts = Usage(
            usage.prompt_tokens,
            usage.completion_tokens,
            prompt.cached_tokens or 0,
            answer.reasoning_tokens or 0,
            answer.accepted_prediction_tokens or 0,
            answer.rejected_prediction_tokens or 0,
        )
        first = self._first or now
        finish = "tool_calls" if self._calls and self._finish == "stop" else self._finish
        return Done(finish, counts, first - self._began, now - first, self._stop)

    def _deltas(self, choice: Choice, tokens: int) -> Iterator[Delta]:
        delta = choice.delta
        if reasoning := delta.reasoning_content or delta.reasoning:
            yield Delta(reasoning=reasoning, tokens=tokens)
        scored = choice.logprobs.content if choice.logprobs and self._job.sampling.logprobs is not None else None
        logprobs = [Logprob(one.scored(), tuple(top.scored() for top in one.top_logprobs)) for one in scored or ()]
        if (text := delta.content or choice.text or delta.refusal) or logprobs:
            yield Delta(text or "", logprobs=logprobs, tokens=tokens)
        for call in delta.tool_calls or ():
            yield from self._call(call, tokens)

    def _call(self, call: Call, tokens: int) -> Iterator[Delta]:
        """The name first and alone; the calls one after the other."""
        if not self._calls or call.index != self._calls[-1]:
            if call.index in self._calls or not call.function.name or len(self._calls) == MOST_CALLS:
                raise Broken(f"the upstream's tool call {call.index} has no name, or comes in pieces out of turn")
            self._calls.append(call.index)
            yield Delta(tool_call=ToolCall(len(self._calls) - 1, call.function.name), tokens=tokens)
        if call.function.arguments:
            yield Delta(tool_call=ToolCall(len(self._calls) - 1, "", call.function.arguments), tokens=tokens)


def same(answered: str, asked: str) -> bool:
    """Services answer with the version of a model: `gpt-4o-2024-08-06`."""
    return answered == asked or answered.startswith(f"{asked}-")


def failure(error: ErrorFields | str, secret: str | None) -> Exception:
    """Of one that an upstream reports in its own words."""
    if isinstance(error, str):
        error = ErrorFields(error)
    said = quoted(error.message, secret) or "nothing more"
    if error.type in ("invalid_request_error", "BadRequestError"):
        refused = RefusedElsewhere("the upstream refuses it", error.param, str(error.code) if error.code else None)
        return quoting(refused, said)
    return quoting(UpstreamFailed("the upstream failed"), said)


def quoted(text: str, secret: str | None) -> str:
    """One line of what it said, without the key in it."""
    clean = " ".join((text.replace(secret, "***") if secret else text).split())
    return clean if len(clean) <= QUOTED else f"{clean[:QUOTED]}..."
