"""OpenAI's wire shapes of what is answered."""

import secrets
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, UnsetType

from enginehouse.runtimes.contract import Logprob, Scored, Usage
from enginehouse.runtimes.pool import explanation

LEAST_LOGPROB = -9999.0
FinishReason = Annotated[str, msgspec.Meta(pattern="^(stop|length|tool_calls|function_call)$")]


class PromptDetails(msgspec.Struct, frozen=True):
    cached_tokens: int


class CompletionDetails(msgspec.Struct, frozen=True):
    reasoning_tokens: int
    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class TokenUsage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class PromptUsage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    total_tokens: int


class TopLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class Logprobs(msgspec.Struct, frozen=True):
    content: list[TokenLogprob]
    refusal: None = None


class CalledFunction(msgspec.Struct, frozen=True):
    name: str
    arguments: str


class ToolCall(msgspec.Struct, frozen=True):
    id: str
    type: Literal["function"]
    function: CalledFunction


class AnswerMessage(msgspec.Struct, frozen=True):
    role: Literal["assistant"]
    content: str | None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET
    function_call: CalledFunction | UnsetType = UNSET  # to a request with `functions`


class Choice(msgspec.Struct, frozen=True):
    index: int
    message: AnswerMessage
    logprobs: Logprobs | None
    finish_reason: FinishReason


class ChatCompletion(msgspec.Struct, frozen=True):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: TokenUsage


class TextLogprobs(msgspec.Struct, frozen=True):
    """By token of the text, beginning with the prompt's where that is echoed; null where nothing stands before."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(msgspec.Struct, frozen=True):
    text: str
    index: int
    logprobs: TextLogprobs | None
    finish_reason: FinishReason | None


class Completion(msgspec.Struct, frozen=True):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: TokenUsage


class Embedding(msgspec.Struct, frozen=True):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str  # base64 of 32-bit floats, little end first


class EmbeddingList(msgspec.Struct, frozen=True):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: PromptUsage


class Document(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    text: str


class Ranking(msgspec.Struct, frozen=True):
    index: int
    relevance_score: float
    document: Document | UnsetType = UNSET


class Reranking(msgspec.Struct, frozen=True):
    id: str
    model: str
    results: list[Ranking]
    usage: PromptUsage


class Score(msgspec.Struct, frozen=True):
    index: int
    object: Literal["score"]
    score: float


class ScoreList(msgspec.Struct, frozen=True):
    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Score]
    usage: PromptUsage


class Tokens(msgspec.Struct, frozen=True):
    tokens: list[int]
    count: int
    max_model_len: int


class Prompt(msgspec.Struct, frozen=True):
    prompt: str


class Model(msgspec.Struct, frozen=True):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    aliases: list[str]
    source: str
    status: explanation.Status


class ModelList(msgspec.Struct, frozen=True):
    object: Literal["list"]
    data: list[Model]


class Version(msgspec.Struct, frozen=True):
    version: str


class Status(msgspec.Struct, frozen=True):
    status: str
    config: str | msgspec.UnsetType = msgspec.UNSET  # where a change to its file was refused


def usage_of(usage: Usage) -> TokenUsage:
    return TokenUsage(
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.prompt_tokens + usage.completion_tokens,
        PromptDetails(usage.cached_tokens),
        CompletionDetails(usage.reasoning_tokens, usage.accepted_prediction_tokens, usage.rejected_prediction_tokens),
    )


def logprobs_of(logprobs: Sequence[Logprob]) -> Logprobs:
    return Logprobs(
        [
            TokenLogprob(shown(one.token), least(one.token), list(one.token.text), [top_of(top) for top in one.top])
            for one in logprobs
        ]
    )


def top_of(scored: Scored) -> TopLogprob:
    return TopLogprob(shown(scored), least(scored), list(scored.text))


def shown(scored: Scored) -> str:
    return scored.text.decode("utf-8", "replace")


def least(scored: Scored) -> float:
    """JSON has no -inf."""
    return max(scored.logprob, LEAST_LOGPROB)


def call_of(name: str, arguments: str) -> ToolCall:
    """A call with an id of its own."""
    return ToolCall(f"call_{secrets.token_hex(12)}", "function", CalledFunction(name, arguments))
