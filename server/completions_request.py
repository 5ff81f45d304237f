"""OpenAI's wire shapes for a text completion: what a request may hold, and the jobs it is."""

from typing import Annotated, Any

import msgspec

from runtimes.contract import Ids, Job, Refused, Text
from server.body import Texts, Whole, parse, texts_of
from server.chunks import StreamOptions, check_stream_options
from server.sampling import (
    MOST_ANSWERS,
    AnswerCount,
    LogitBias,
    MinP,
    Penalty,
    RepetitionPenalty,
    Seed,
    Temperature,
    TopP,
    copies,
    sampling,
)

IGNORED = {"user"}
NEUTRAL: dict[str, tuple[Any, ...]] = {"best_of": (1,), "suffix": ()}


class CompletionRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    model: str
    prompt: Texts
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Whole = 16
    temperature: Temperature = 1.0
    top_p: TopP = 1.0
    n: AnswerCount = 1
    seed: Seed | None = None
    stop: str | list[str] = []
    frequency_penalty: Penalty = 0.0
    presence_penalty: Penalty = 0.0
    logit_bias: LogitBias = {}
    logprobs: Annotated[int, msgspec.Meta(ge=0, le=5)] | None = None
    echo: bool = False
    # Extensions, as in ChatRequest.
    top_k: Whole = 0
    min_p: MinP = 0.0
    repetition_penalty: RepetitionPenalty = 1.0
    min_tokens: Whole = 0
    ignore_eos: bool = False
    stop_token_ids: list[Whole] = []


def read(body: bytes) -> CompletionRequest:
    """A request for text completions, or Refused with the field's name."""
    request = parse(body, CompletionRequest, IGNORED, NEUTRAL)
    check_stream_options(request.stream, request.stream_options)
    return request


def to_jobs(request: CompletionRequest, id: str) -> list[Job]:
    """One for each choice: those of the first prompt, then those of the second."""
    sampled = sampling(request, max_tokens=request.max_tokens, logprobs=request.logprobs)
    prompts = [Text(text) if isinstance(text, str) else Ids(text) for text in texts_of(request.prompt, "prompt")]
    if len(prompts) * request.n > MOST_ANSWERS:
        raise Refused(
            f"{len(prompts)} prompts with {request.n} choices each are more than {MOST_ANSWERS} answers; "
            "send fewer at a time",
            "prompt" if len(prompts) > 1 else "n",
            "invalid_value",
        )
    jobs = [
        Job(f"{id}-{number}", request.model, prompt, sampled, request.stream, request.echo)
        for number, prompt in enumerate(prompts)
    ]
    return [copy for job in jobs for copy in copies(job, request.n)]
