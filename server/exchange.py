"""One exchange: the jobs of a request run together, and a renderer shows their answers in the client's API, as they
come or when all is there."""

import asyncio
import functools
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any, Protocol

import msgspec
from litestar import Request, Response
from litestar.datastructures import State

from enginehouse.runtimes.contract import Assigned, Delta, Done, Event, Job, PromptProgress, Usage
from enginehouse.runtimes.errors import EngineFailed, Refused, Unavailable
from enginehouse.runtimes.pool.pool import Pool
from enginehouse.server import keepalive
from enginehouse.server.auth import owner_of
from enginehouse.server.content import Content, Step
from enginehouse.server.keepalive import (
    SILENT_SECONDS,
    FirstEvents,
    IndexedEvents,
    Parts,
    assigned_comments,
    assigned_headers,
    assigned_of,
    ticking,
    unless_client_leaves,
    until,
)
from enginehouse.server.logs import PROMPT_LETTERS
from enginehouse.server.rate_limits import charge
from enginehouse.server.request_id import id_of
from enginehouse.server.sse import EVENTS, Framing, encode
from enginehouse.server.traces import SCOPE, RequestTrace, context_headers, traced
from enginehouse.server.urgency import deadline_of, priority_of

log = logging.getLogger("enginehouse.server")
LARGE_LOGPROBS = 1000  # tokens with them
ANSWERING = "answering; nothing of it can be shown yet"


class Answer:
    """One of the answers to a request, as far as it has come."""

    def __init__(self, job: Job, charge: Callable[[int], None] = lambda tokens: None) -> None:
        self.content = Content()
        self.assigned: Assigned | None = None  # who gives it
        self.prompt = PromptProgress(0)
        self.done: Done | None = None
        self.seconds = 0.0  # from the request to its end
        self._job, self._began = job, time.monotonic()
        self._charge, self._charged = charge, 0  # tokens

    def take(self, event: Event) -> list[Step]:
        """What the event changes. One line in the log when the answer is complete."""
        self._charge_for(event)
        match event:
            case Delta() if event.tokens:
                usage = Usage(self.prompt.prompt_tokens, event.tokens, self.prompt.cached)
                return [usage, *self.content.feed(event)]
            case Delta():
                return self.content.feed(event)
            case Done():
                self.done = event
                self.seconds = time.monotonic() - self._began
                log_done(self._job, self.assigned, event, self.seconds)
                return self.content.end(event)
            case PromptProgress():
                self.prompt = event
                return [event]
            case Assigned():
                handed_over, self.assigned = self.assigned is not None, event
                self.prompt = PromptProgress(event.prompt_tokens)
                if event.again:
                    self.content = Content()
                return [event] if handed_over else []

    def _charge_for(self, event: Event) -> None:
        """Also of an answer that its client leaves: then a token for each delta."""
        match event:
            case Assigned():
                used = max(self._charged, event.prompt_tokens)
            case Delta():
                used = self._charged + 1
            case Done():
                used = event.usage.prompt_tokens + event.usage.completion_tokens
            case _:
                return
        self._charge(used - self._charged)
        self._charged = used


class Renderer(Protocol):
    """Shows the answers to one request."""

    async def whole(self, assigned: Assigned, answers: Sequence[Answer]) -> Any:
        """The body, when all have ended."""

    def start(self, assigned: Assigned | None) -> bytes:
        """The beginning of a stream; None: it failed before anyone could answer."""

    def step(self, index: int, step: Step) -> bytes:
        """What is new in the answer of that index."""

    async def end(self, answers: Sequence[Answer]) -> bytes:
        """The end of a stream, when all have ended."""

    def failure(self, answers: Sequence[Answer], error: Exception) -> bytes:
        """The end of a stream that broke: its status is out."""


async def answer(
    request: Request[Any, Any, State], jobs: Sequence[Job], renderer: Renderer, framing: Framing = EVENTS
) -> Response[Any]:
    """The response to a request that is these jobs."""
    answers, events = await begun(request, jobs)
    if jobs[0].streamed:
        pool: Pool = request.app.state.pool
        waiting_for = functools.partial(pool.waiting_for, pool.resolve(jobs[0].model), jobs[0].id)
        body = functools.partial(stream, renderer, answers, framing=framing)
        return await keepalive.stream_response(
            request,
            events,
            len(answers),
            waiting_for,
            body,
            functools.partial(failed_start, renderer, answers),
            framing,
        )
    assigned = await unless_client_leaves(request, collect(answers, events))
    whole = await renderer.whole(assigned, answers)
    encoded = await asyncio.to_thread(encode, whole) if large(answers) else encode(whole)
    return Response(encoded, headers=assigned_headers(assigned), media_type="application/json")


async def answered(request: Request[Any, Any, State], job: Job) -> Answer:
    """One whole answer."""
    answers, events = await begun(request, [job])
    await unless_client_leaves(request, collect(answers, events))
    return answers[0]


async def unattended(request: Request[Any, Any, State], jobs: Sequence[Job], renderer: Renderer) -> Parts:
    """The stream of a request that is these jobs, whether its client stays or not."""
    answers, events = await begun(request, jobs)
    try:
        first = await keepalive.first_of(events, len(answers))
    except (EngineFailed, Refused, Unavailable) as error:
        yield failed_start(renderer, answers, error)
        return
    async with aclosing(stream(renderer, answers, first, events)) as parts:
        async for part in parts:
            yield part


async def begun(request: Request[Any, Any, State], jobs: Sequence[Job]) -> tuple[list[Answer], IndexedEvents]:
    pool: Pool = request.app.state.pool
    if pool.config.server.log_prompts:
        await asyncio.to_thread(log_prompts, jobs)
    common = {"request": jobs[0].id, "priority": priority_of(request), "owner": owner_of(request)}
    common["request_id"] = id_of(request)
    trace: RequestTrace | None = request.scope.get(SCOPE)  # type: ignore[assignment]
    passed_on = {} if trace else context_headers(request.scope["headers"])
    jobs = [msgspec.structs.replace(job, **common, trace_headers=passed_on) for job in jobs]
    answers = [Answer(job, functools.partial(charge, request.scope)) for job in jobs]
    running = [pool.run(job) if trace is None else in_trace(trace, pool, job) for job in jobs]
    events, deadline = merged(running), deadline_of(request)
    return answers, until(deadline, events) if deadline and jobs[0].streamed else events


def in_trace(trace: RequestTrace, pool: Pool, job: Job) -> AsyncGenerator[Event, None]:
    answer = trace.answer(job)
    return traced(answer, pool.run(msgspec.structs.replace(job, trace_headers=answer.headers)))


def log_prompts(jobs: Sequence[Job]) -> None:
    """Runs in a thread: they may be long."""
    for job in jobs:
        log.info("%s asks: %s", job.id, msgspec.json.encode(job.prompt).decode()[:PROMPT_LETTERS])


def large(answers: Sequence[Answer]) -> bool:
    """Whether they are to be put together apart from the event loop."""
    return sum(len(one.content.logprobs) for one in answers) > LARGE_LOGPROBS


async def collect(answers: Sequence[Answer], events: IndexedEvents) -> Assigned:
    """Waits until all answers are whole; who was the first to give one."""
    first = await keepalive.first_of(events)
    for index, event in first:
        answers[index].take(event)
    async for index, event in events:
        answers[index].take(event)
    return assigned_of(first)


async def stream(
    renderer: Renderer,
    answers: Sequence[Answer],
    first: FirstEvents,
    events: IndexedEvents,
    framing: Framing = EVENTS,
) -> Parts:
    """The body. Headers are out by now, so an error becomes an event, and another engine's name a comment."""
    async with aclosing(ticking(first, events)) as ticked:
        yield renderer.start(assigned_of(first))
        shown = time.monotonic()  # when last
        try:
            async for pair in ticked:
                if pair is None:
                    yield still_going(renderer, answers, framing)
                    shown = time.monotonic()
                    continue
                index, event = pair
                if isinstance(event, Assigned) and answers[index].assigned:
                    yield framing.comment("its engine died; another goes on") + assigned_comments(event, framing)
                for step in answers[index].take(event):
                    if part := renderer.step(index, step):
                        yield part
                        shown = time.monotonic()
                if time.monotonic() >= shown + SILENT_SECONDS:  # it thinks unseen, or writes what goes out whole
                    yield framing.comment(ANSWERING)
                    shown = time.monotonic()
            yield await renderer.end(answers)
        except (EngineFailed, Refused, Unavailable) as error:
            yield renderer.failure(answers, error)


def still_going(renderer: Renderer, answers: Sequence[Answer], framing: Framing) -> bytes:
    """Of the prompt that is furthest, and in the dialect's own way."""
    prompt = max([answer.prompt for answer in answers], key=lambda prompt: prompt.read or 0)
    if prompt.read == prompt.prompt_tokens:
        return framing.comment(ANSWERING) + renderer.step(0, prompt)
    read = "" if prompt.read is None else f"{prompt.read:,} of "
    said = f"reading the prompt, {read}{prompt.prompt_tokens:,} tokens"
    return framing.comment(said) + renderer.step(0, prompt)


def failed_start(renderer: Renderer, answers: Sequence[Answer], error: Exception) -> bytes:
    """The body where nobody came to answer, with the status out: clients want to see it begin all the same."""
    return renderer.start(None) + renderer.failure(answers, error)


async def merged(answers: Sequence[AsyncGenerator[Event, None]]) -> IndexedEvents:
    """Events as they come, with the index of their answer. The first failure ends all."""
    if len(answers) == 1:
        async with aclosing(answers[0]) as events:
            async for event in events:
                yield 0, event
        return
    arrived: asyncio.Queue[tuple[int, Event | Exception]] = asyncio.Queue()
    tasks = [asyncio.create_task(pass_on(index, events, arrived)) for index, events in enumerate(answers)]
    running = len(tasks)
    try:
        while running:
            index, came = await arrived.get()
            if isinstance(came, Exception):
                raise came
            running -= isinstance(came, Done)
            yield index, came
    finally:
        for task in tasks:
            task.cancel()


async def pass_on(
    index: int, events: AsyncGenerator[Event, None], to: "asyncio.Queue[tuple[int, Event | Exception]]"
) -> None:
    try:
        async with aclosing(events):
            async for event in events:
                to.put_nowait((index, event))
    except Exception as error:  # whatever it is, the request's own task is to raise it
        to.put_nowait((index, error))


def total(answers: Sequence[Answer], per_prompt: int) -> Usage:
    """Of all answers; a prompt counts once, however many there are to it."""
    usages = [one.done.usage for one in answers if one.done]
    prompts = usages[::per_prompt]
    return Usage(
        sum(usage.prompt_tokens for usage in prompts),
        sum(usage.completion_tokens for usage in usages),
        sum(usage.cached_tokens for usage in prompts),
        sum(usage.reasoning_tokens for usage in usages),
        sum(usage.accepted_prediction_tokens for usage in usages),
        sum(usage.rejected_prediction_tokens for usage in usages),
    )


def log_done(job: Job, assigned: Assigned | None, done: Done, seconds: float) -> None:
    assert assigned
    log.info(
        "%s %s on %s %s: %d prompt (%d cached) + %d tokens, %s; %.3f s, of which prefill %.3f s",
        job.id,
        job.model,
        assigned.runtime,
        assigned.precision,
        done.usage.prompt_tokens,
        done.usage.cached_tokens,
        done.usage.completion_tokens,
        done.finish_reason,
        seconds,
        done.prefill_seconds,
    )
