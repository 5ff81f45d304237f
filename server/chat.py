"""POST /v1/chat/completions."""

import functools
import logging
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from litestar import Request, Response, post
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from msgspec import UNSET

from runtimes.contract import Done, Event, Job, Placed
from runtimes.pool import Pool
from server import openai, replies, sse, waiting
from server.choices import Said, collect, copies, together, total
from server.schema import Body, described
from server.waiting import placed_headers, unless_client_leaves

log = logging.getLogger("enginehouse.server")


@post(
    "/v1/chat/completions",
    status_code=200,
    operation_class=described(
        replies.ChatCompletion,
        Body(openai.ChatRequest, frozenset(openai.IGNORED), openai.NEUTRAL),
        streams=True,
        placed=True,
    ),
)
async def chat_completions(request: Request[Any, Any, State], state: State) -> Response[Any]:
    """A chat completion, whole or as server-sent events; OpenAI's fields and the extensions the README lists."""
    check_content_type(request)
    chat = openai.read(await request.body())
    pool: Pool = state.pool
    id, created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())
    jobs = copies(openai.to_job(chat, id), chat.n)
    usage = chat.stream_options is not None and chat.stream_options.include_usage
    head = sse.Head("chat.completion.chunk", id, created, chat.model, usage, chat.n)
    events = together([log_end(job, pool.run(job)) for job in jobs], head.place)
    if chat.stream:
        waiting_for = functools.partial(pool.waiting_for, pool.resolve(chat.model))
        body = functools.partial(sse.chat_stream, head, chat.n)
        return await waiting.stream(request, events, waiting_for, body, sse.failure)
    placed = await unless_client_leaves(request, waiting.placed_first(events))  # the first event decides the status
    said = await unless_client_leaves(request, collect(events, chat.n))
    completion = replies.ChatCompletion(
        id,
        "chat.completion",
        created,
        chat.model,
        placed.fingerprint,
        [choice(index, one) for index, one in enumerate(said)],
        replies.usage_of(total([one.done for one in said if one.done], chat.n)),
    )
    return Response(completion, headers=placed_headers(placed), media_type="application/json")


def choice(index: int, said: Said) -> replies.Choice:
    assert said.done
    content = "".join(said.text)
    calls = [replies.call_of(*call) for call in zip(said.names, said.arguments, strict=True)]
    message = replies.AnswerMessage(
        "assistant", None if calls and not content else content, "".join(said.reasoning) or UNSET, calls or UNSET
    )
    scored = replies.logprobs_of(said.logprobs) if said.logprobs else None
    return replies.Choice(index, message, scored, said.done.finish_reason)


def check_content_type(request: Request[Any, Any, State]) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(detail=f"content-type '{kind}' is not read here; send application/json", status_code=415)


async def log_end(job: Job, events: AsyncGenerator[Event, None]) -> AsyncGenerator[Event, None]:
    """Passes events on; one line in the log when the answer is complete."""
    began = time.monotonic()
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Placed):
                placed = event
            elif isinstance(event, Done):
                log_done(job, placed, event, time.monotonic() - began)
            yield event


def log_done(job: Job, placed: Placed, done: Done, seconds: float) -> None:
    log.info(
        "%s %s on %s %s: %d prompt (%d cached) + %d tokens, %s; %.3f s, of which prefill %.3f s",
        job.id,
        job.model,
        placed.runtime,
        placed.precision,
        done.usage.prompt_tokens,
        done.usage.cached_tokens,
        done.usage.completion_tokens,
        done.finish_reason,
        seconds,
        done.prefill_seconds,
    )
