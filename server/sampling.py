"""How the next token is chosen, and how many answers there are: the fields that several APIs ask for it with."""

from typing import Annotated, Any

import msgspec

from runtimes.contract import Job, JsonSchema, Sampling
from server.body import Whole

MOST_ANSWERS = 128  # to one request, as OpenAI's
# Fields that Sampling has under the same names.
SAMPLED = (
    "min_tokens", "ignore_eos", "temperature", "top_p", "top_k", "min_p", "seed", "frequency_penalty",
    "presence_penalty", "repetition_penalty", "logit_bias",
)  # fmt: skip

AnswerCount = Annotated[int, msgspec.Meta(ge=1, le=MOST_ANSWERS)]
Temperature = Annotated[float, msgspec.Meta(ge=0, le=2)]
TopP = Annotated[float, msgspec.Meta(gt=0, le=1)]
MinP = Annotated[float, msgspec.Meta(ge=0, le=1)]
TopLogprobs = Annotated[int, msgspec.Meta(ge=0, le=20)]
Seed = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]
RepetitionPenalty = Annotated[float, msgspec.Meta(ge=0.01, le=100)]
LogitBias = dict[Whole, Annotated[float, msgspec.Meta(ge=-100, le=100)]]


class TextFormat(msgspec.Struct, tag_field="type", tag="text", frozen=True):
    pass


class JsonFormat(msgspec.Struct, tag_field="type", tag="json_object", frozen=True):
    pass


class NamedSchema(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    name: str
    schema: dict[str, Any] = {}
    description: str | None = None
    strict: bool | None = None  # here a schema is always enforced to the letter


def json_schema(schema: dict[str, Any]) -> JsonSchema:
    return JsonSchema(msgspec.json.encode(schema).decode())


def sampling(request: Any, **further: Any) -> Sampling:
    """From the fields that a chat completion's request and a text completion's have in common; the others as given."""
    alike = {name: getattr(request, name) for name in SAMPLED}
    stop = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop)
    return Sampling(**alike, stop=stop, stop_token_ids=tuple(request.stop_token_ids), **further)


def copies(job: Job, count: int) -> list[Job]:
    """The same job so many times; a seed goes up by one with each, else all answers would be the same."""
    jobs = [job]
    for number in range(1, count):
        seed = None if job.sampling.seed is None else job.sampling.seed + number
        sampling = msgspec.structs.replace(job.sampling, seed=seed)
        jobs.append(msgspec.structs.replace(job, id=f"{job.id}-{number}", sampling=sampling))
    return jobs
