"""POST /v1/completions: prompts that are taken as they are, without a chat template."""

import codecs
import functools
import secrets
import time
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from litestar import Request, Response, post
from litestar.datastructures import State

from runtimes.contract import Delta, Done, Ids, Job, Logprob, Refused, Scored, Text
from runtimes.pool import Pool
from server import openai, replies, sse, waiting
from server.chat import check_content_type, log_end
from server.choices import MOST, Numbered, Said, collect, copies, together, total
from server.openai import Penalty, StreamOptions, Whole
from server.schema import Body, described
from server.sse import Chunks, encode
from server.waiting import Parts, placed_headers, unless_client_leaves

IGNORED = {"user"}
NEUTRAL: dict[str, tuple[Any, ...]] = {"best_of": (1,), "suffix": ()}
Texts = str | list[str | int | list[int]]  # a text, texts, token ids, or lists of them


class CompletionRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    model: str
    prompt: Texts
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Whole = 16
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] = 1.0
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    n: Annotated[int, msgspec.Meta(ge=1, le=MOST)] = 1
    seed: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: str | list[str] = []
    frequency_penalty: Penalty = 0.0
    presence_penalty: Penalty = 0.0
    logit_bias: dict[Whole, Annotated[float, msgspec.Meta(ge=-100, le=100)]] = {}
    logprobs: Annotated[int, msgspec.Meta(ge=0, le=5)] | None = None
    echo: bool = False
    # Extensions, as in ChatRequest.
    top_k: Whole = 0
    min_p: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, msgspec.Meta(ge=0.01, le=100)] = 1.0
    min_tokens: Whole = 0
    ignore_eos: bool = False
    stop_token_ids: list[Whole] = []


@post(
    "/v1/completions",
    status_code=200,
    operation_class=described(
        replies.Completion, Body(CompletionRequest, frozenset(IGNORED), NEUTRAL), streams=True, placed=True
    ),
)
async def completions(request: Request[Any, Any, State], state: State) -> Response[Any]:
    """How texts or token ids go on, whole or as server-sent events."""
    check_content_type(request)
    asked = read(await request.body())
    pool: Pool = state.pool
    id, created = f"cmpl-{secrets.token_hex(12)}", int(time.time())
    jobs = to_jobs(asked, id)
    usage = asked.stream_options is not None and asked.stream_options.include_usage
    head = sse.Head("text_completion", id, created, asked.model, usage, asked.n)
    events = together([log_end(job, pool.run(job)) for job in jobs], head.place)
    if asked.stream:
        waiting_for = functools.partial(pool.waiting_for, pool.resolve(asked.model))
        body = functools.partial(text_stream, head, len(jobs))
        return await waiting.stream(request, events, waiting_for, body, sse.failure)
    placed = await unless_client_leaves(request, waiting.placed_first(events))  # the first event decides the status
    said = await unless_client_leaves(request, collect(events, len(jobs)))
    completion = replies.Completion(
        id,
        "text_completion",
        created,
        asked.model,
        placed.fingerprint,
        [choice(index, one) for index, one in enumerate(said)],
        replies.usage_of(total([one.done for one in said if one.done], asked.n)),
    )
    return Response(completion, headers=placed_headers(placed), media_type="application/json")


def read(body: bytes) -> CompletionRequest:
    request = openai.convert(openai.accepted(openai.json_object(body), IGNORED, NEUTRAL), CompletionRequest)
    openai.check_stream_options(request.stream, request.stream_options)
    return request


def to_jobs(request: CompletionRequest, id: str) -> list[Job]:
    """One for each choice: those of the first prompt, then those of the second."""
    sampling = openai.sampling(request, max_tokens=request.max_tokens, logprobs=request.logprobs)
    prompts = prompts_of(request.prompt)
    if len(prompts) * request.n > MOST:
        raise Refused(
            f"{len(prompts)} prompts with {request.n} choices each are more than {MOST} answers; send fewer at a time",
            "prompt" if len(prompts) > 1 else "n",
            "invalid_value",
        )
    jobs = [
        Job(f"{id}-{number}", request.model, prompt, sampling, request.stream, request.echo)
        for number, prompt in enumerate(prompts)
    ]
    return [copy for job in jobs for copy in copies(job, request.n)]


def prompts_of(given: Texts) -> list[Text | Ids]:
    return [Text(text) if isinstance(text, str) else Ids(text) for text in texts_of(given, "prompt")]


def texts_of(given: Texts, field: str) -> list[str | list[int]]:
    """OpenAI's four forms of a field as a list of texts or of token ids, none of them empty."""
    if isinstance(given, str) or (given and isinstance(given[0], int)):
        given = [given]  # type: ignore[list-item]
    try:
        texts = msgspec.convert(given, list[str | list[int]])
    except msgspec.ValidationError as error:
        raise Refused(f"'{field}' must be a text, texts, token ids or lists of them: {error}", field) from error
    if not texts or not all(texts):
        raise Refused(f"'{field}' holds nothing, or an empty text", field, "invalid_value")
    return texts


def choice(index: int, said: Said) -> replies.TextChoice:
    assert said.done
    scored = Scores().of(said.logprobs) if said.logprobs else None
    return replies.TextChoice("".join(said.text), index, scored, said.done.finish_reason)


class Scores:
    """Log-probabilities in OpenAI's older shape, piece by piece, for it says where in the text each token begins."""

    def __init__(self) -> None:
        self._offset = 0  # characters
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def of(self, logprobs: Sequence[Logprob]) -> replies.TextLogprobs:
        tokens, own, top, offsets = list[str](), list[float | None](), list[dict[str, float] | None](), list[int]()
        for one in logprobs:
            tokens.append(named(one.token.text))
            own.append(None if one.first else replies.least(one.token))
            top.append(None if one.first else alternatives([*one.top, one.token]))
            offsets.append(self._offset)
            self._offset += len(self._decode(one.token.text))
        return replies.TextLogprobs(tokens, own, top, offsets)


def alternatives(scored: Sequence[Scored]) -> dict[str, float]:
    """By text; of several tokens that show the same the likeliest."""
    named_scores: dict[str, float] = {}
    for one in scored:
        named_scores.setdefault(named(one.text), replies.least(one))
    return named_scores


def named(text: bytes) -> str:
    """As OpenAI does it: a piece of a character is written by its bytes."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in text)


def text_stream(head: sse.Head, count: int, events: Numbered) -> Parts:
    choices: list[Chunks] = [TextChunks(head, index) for index in range(count)]
    return sse.stream(events, choices, head.last)


class TextChunks:
    def __init__(self, head: sse.Head, index: int) -> None:
        self._head, self._index, self._scores = head, index, Scores()

    def opening(self) -> bytes:
        return b""

    def delta(self, delta: Delta) -> bytes:
        scored = self._scores.of(delta.logprobs) if delta.logprobs else None
        return self._chunk(replies.TextChoice(delta.text, self._index, scored, None))

    def closing(self, done: Done) -> bytes:
        return self._chunk(replies.TextChoice("", self._index, None, done.finish_reason))

    def _chunk(self, choice: replies.TextChoice) -> bytes:
        return self._head.begin + b',"choices":[' + encode(choice) + b"]" + self._head.end
