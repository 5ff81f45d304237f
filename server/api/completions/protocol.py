"""OpenAI's wire shapes for a text completion: what a request may hold, and the jobs it is."""

from typing import Annotated, Any

import msgspec

from enginehouse.runtimes.contract import Ids, Job, Text
from enginehouse.runtimes.errors import Refused
from enginehouse.server.api.chunks import StreamOptions, check_stream_options, wants_counts
from enginehouse.server.api.constraints import constraint_of
from enginehouse.server.api.sampling import Bound, SamplingFields, copies, limit, sampling_of
from enginehouse.server.body import Texts, parse, texts_of
from enginehouse.server.limits import ANSWERS

IGNORED = {"user"}
NEUTRAL: dict[str, tuple[Any, ...]] = {"best_of": (1,), "suffix": ()}


class CompletionRequest(SamplingFields, forbid_unknown_fields=True, frozen=True):
    model: str
    prompt: Texts
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Bound = 16
    logprobs: Annotated[int, msgspec.Meta(ge=0, le=5)] | None = None
    echo: bool = False


def read(body: bytes) -> CompletionRequest:
    """A request for text completions, or Refused with the field's name."""
    request = parse(body, CompletionRequest, IGNORED, NEUTRAL)
    check_stream_options(request.stream, request.stream_options)
    return request


def to_jobs(request: CompletionRequest, id: str) -> list[Job]:
    """One for each choice: those of the first prompt, then those of the second."""
    _, constraint = constraint_of(request)
    sampling = sampling_of(
        request,
        constraint=constraint,
        max_tokens=limit(request.max_tokens, "max_tokens", least=0),
        logprobs=request.logprobs,
    )
    prompts = [Text(text) if isinstance(text, str) else Ids(text) for text in texts_of(request.prompt, "prompt")]
    if len(prompts) * request.n > ANSWERS:
        raise Refused(
            f"{len(prompts)} prompts with {request.n} choices each are more than {ANSWERS} answers; "
            "send fewer at a time",
            "prompt" if len(prompts) > 1 else "n",
            "invalid_value",
        )
    jobs = [
        Job(f"{id}-{number}", request.model, prompt, sampling, request.stream, request.echo)
        for number, prompt in enumerate(prompts)
    ]
    counted = wants_counts(request.stream_options)
    jobs = [msgspec.structs.replace(job, counted=counted) for job in jobs]
    return [copy for job in jobs for copy in copies(job, request.n)]
