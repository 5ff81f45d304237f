"""How the next token is chosen, and how many answers there are: the fields that several APIs ask for it with."""

from typing import Annotated, Any

import msgspec

from enginehouse.runtimes.contract import Job, Sampling
from enginehouse.runtimes.errors import Refused
from enginehouse.server.api.constraints import ConstraintFields
from enginehouse.server.body import LARGEST, Whole
from enginehouse.server.limits import ANSWERS, LOGIT_BIASES, STOP_LETTERS, STOP_TOKENS, STOPS

Temperature = Annotated[float, msgspec.Meta(ge=0, le=2)]
TopP = Annotated[float, msgspec.Meta(gt=0, le=1)]
TopLogprobs = Annotated[int, msgspec.Meta(ge=0, le=20)]
Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]
Stop = Annotated[str, msgspec.Meta(max_length=STOP_LETTERS)]
Stops = Annotated[list[Stop], msgspec.Meta(max_length=STOPS)]
Repetition = Annotated[float, msgspec.Meta(ge=0.01, le=100)]
Bound = Annotated[int, msgspec.Meta(ge=-1, le=LARGEST)]  # -1: none
Bias = Annotated[float, msgspec.Meta(ge=-100, le=100)]


class SamplingFields(ConstraintFields, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """What requests for a chat completion and for a text completion have in common."""

    n: Annotated[int, msgspec.Meta(ge=1, le=ANSWERS)] = 1
    temperature: Temperature = 1.0
    top_p: TopP = 1.0
    seed: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: Stop | Stops = msgspec.field(default_factory=list)
    frequency_penalty: Penalty = 0.0
    presence_penalty: Penalty = 0.0
    logit_bias: Annotated[dict[Whole, Bias], msgspec.Meta(max_length=LOGIT_BIASES)] = msgspec.field(
        default_factory=dict
    )
    # Extensions, named as other servers name them.
    top_k: Bound = 0  # 0 is none, too
    min_p: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    repetition_penalty: Repetition | None = None
    repeat_penalty: Repetition | None = None  # llama.cpp's name of it
    min_tokens: Whole = 0
    ignore_eos: bool = False
    stop_token_ids: Annotated[list[Whole], msgspec.Meta(max_length=STOP_TOKENS)] = msgspec.field(default_factory=list)


def sampling_of(request: SamplingFields, **further: Any) -> Sampling:
    """With `further` fields as given."""
    alike = {
        name: getattr(request, name) for name in SamplingFields.__struct_fields__ if name in Sampling.__struct_fields__
    }
    alike["top_k"] = max(0, request.top_k)
    alike["repetition_penalty"] = repetition_penalty(request)
    alike["stop"] = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop)
    alike["stop_token_ids"] = tuple(request.stop_token_ids)
    return Sampling(**alike, **further)


def repetition_penalty(request: SamplingFields) -> float:
    given = {value for value in (request.repetition_penalty, request.repeat_penalty) if value is not None}
    if len(given) > 1:
        raise Refused("'repeat_penalty' is another 'repetition_penalty'; send one of them", "repeat_penalty")
    return given.pop() if given else 1.0


def limit(tokens: int | None, field: str, least: int = 1) -> int | None:
    """Of an answer; None: the context's end."""
    if tokens is None or tokens == -1:
        return None
    if tokens < least:
        raise Refused(f"'{field}' is {least} or more, or -1 for no limit", field, "invalid_value")
    return tokens


class TextFormat(msgspec.Struct, tag_field="type", tag="text", forbid_unknown_fields=True, frozen=True):
    pass


class JsonFormat(
    msgspec.Struct, tag_field="type", tag="json_object", forbid_unknown_fields=True, omit_defaults=True, frozen=True
):
    schema: dict[str, Any] | None = None  # an extension of llama.cpp, Together and Fireworks


class NamedSchema(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    name: str
    schema: dict[str, Any] = {}
    description: str | None = None
    strict: bool | None = None  # here a schema is always enforced to the letter


def copies(job: Job, count: int) -> list[Job]:
    """The same job so many times; a seed goes up by one with each, else all answers would be the same."""
    jobs = [job]
    for number in range(1, count):
        seed = None if job.sampling.seed is None else job.sampling.seed + number
        sampling = msgspec.structs.replace(job.sampling, seed=seed)
        jobs.append(msgspec.structs.replace(job, id=f"{job.id}-{number}", sampling=sampling))
    return jobs
