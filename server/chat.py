"""POST /v1/chat/completions."""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from litestar import Request, Response, post
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.response import Stream
from msgspec import UNSET

from runtimes.contract import Done, Event, Job, Placed
from runtimes.pool import Pool
from server import openai, replies, sse
from server.choices import Said, collect, copies, together, total
from server.schema import Body, described

log = logging.getLogger("enginehouse.server")
T = TypeVar("T")
# The client is gone when this is sent; it only names what happened in the log of a proxy in between.
CLIENT_CLOSED_REQUEST = 499


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
    events = together([log_end(job, pool.run(job)) for job in jobs])
    _, placed = await unless_client_leaves(request, anext(events))  # the first event decides the status
    assert isinstance(placed, Placed)
    headers = placed_headers(placed)
    if chat.stream:
        usage = chat.stream_options is not None and chat.stream_options.include_usage
        head = sse.Head("chat.completion.chunk", id, created, chat.model, placed.fingerprint, usage, chat.n)
        chunks = [sse.ChatChunks(head, index) for index in range(chat.n)]
        return event_stream(sse.stream(events, chunks, head.last), headers)
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
    return Response(completion, headers=headers, media_type="application/json")


def choice(index: int, said: Said) -> replies.Choice:
    assert said.done
    content = "".join(said.text)
    calls = [replies.call_of(*call) for call in zip(said.names, said.arguments, strict=True)]
    message = replies.AnswerMessage(
        "assistant", None if calls and not content else content, "".join(said.reasoning) or UNSET, calls or UNSET
    )
    scored = replies.logprobs_of(said.logprobs) if said.logprobs else None
    return replies.Choice(index, message, scored, said.done.finish_reason)


def event_stream(body: AsyncIterator[bytes], headers: dict[str, str]) -> Stream:
    headers = headers | {"cache-control": "no-cache", "x-accel-buffering": "no"}
    return Stream(body, media_type="text/event-stream", headers=headers)


def placed_headers(placed: Placed) -> dict[str, str]:
    return {
        "x-enginehouse-runtime": placed.runtime,
        "x-enginehouse-precision": placed.precision,
        "x-enginehouse-device": placed.device,
        "x-enginehouse-reason": placed.reason,
    }


def check_content_type(request: Request[Any, Any, State]) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(detail=f"content-type '{kind}' is not read here; send application/json", status_code=415)


async def unless_client_leaves(request: Request[Any, Any, State], work: Coroutine[Any, Any, T]) -> T:
    """Litestar lets a handler run on when its client hangs up; this ends it, and with it the job in the engine."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(disconnected(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise HTTPException(detail="the client closed the connection", status_code=CLIENT_CLOSED_REQUEST)
    finally:
        task.cancel()
        gone.cancel()


async def disconnected(request: Request[Any, Any, State]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


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
