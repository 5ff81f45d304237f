"""POST /v1/chat/completions."""

import functools
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from litestar import Request, Response, post
from litestar.datastructures import State
from litestar.exceptions import HTTPException

from runtimes.contract import Delta, Done, Event, Job, Logprob, Placed
from runtimes.pool import Pool
from server import openai, sse, waiting
from server.waiting import placed_headers, unless_client_leaves

log = logging.getLogger("enginehouse.server")


@post("/v1/chat/completions", status_code=200)
async def chat_completions(request: Request[Any, Any, State], state: State) -> Response[Any]:
    """A chat completion, whole or as server-sent events; OpenAI's fields and the extensions the README lists."""
    check_content_type(request)
    chat = openai.read(await request.body())
    pool: Pool = state.pool
    job = openai.to_job(chat, f"chatcmpl-{secrets.token_hex(12)}")
    created = int(time.time())
    events = log_end(job, pool.run(job))
    if chat.stream:
        include_usage = chat.stream_options is not None and chat.stream_options.include_usage
        chunks = sse.Chunks(job.id, created, chat.model, include_usage)
        waiting_for = functools.partial(pool.waiting_for, pool.resolve(chat.model))
        return await waiting.stream(request, events, waiting_for, chunks.of, sse.failure)
    placed = await unless_client_leaves(request, anext(events))  # the first event decides the status
    assert isinstance(placed, Placed)
    answer = await unless_client_leaves(request, collect(events))
    completion = {"id": job.id, "object": "chat.completion", "created": created, "model": chat.model, **answer}
    return Response(completion, headers=placed_headers(placed), media_type="application/json")


def check_content_type(request: Request[Any, Any, State]) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(detail=f"content-type '{kind}' is not read here; send application/json", status_code=415)


async def collect(events: AsyncIterator[Event]) -> dict[str, Any]:
    text: list[str] = []
    reasoning: list[str] = []
    names: list[str] = []
    arguments: list[str] = []
    logprobs: list[Logprob] = []
    async for event in events:
        match event:
            case Placed(again=True):
                text, reasoning, names, arguments, logprobs = [], [], [], [], []
            case Delta():
                text.append(event.text)
                reasoning.append(event.reasoning)
                logprobs += event.logprobs
                if call := event.tool_call:
                    if call.name:
                        names.append(call.name)
                        arguments.append("")
                    arguments[-1] += call.arguments
            case Done():
                done = event
    content = "".join(text)
    message: dict[str, Any] = {"role": "assistant", "content": None if names and not content else content}
    if thought := "".join(reasoning):
        message["reasoning_content"] = thought
    if names:
        message["tool_calls"] = [sse.call_fields(*call) for call in zip(names, arguments, strict=True)]
    scored = sse.logprob_fields(logprobs) if logprobs else None
    choice = {"index": 0, "message": message, "logprobs": scored, "finish_reason": done.finish_reason}
    return {"choices": [choice], "usage": sse.usage_fields(done.usage)}


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
