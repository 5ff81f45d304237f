"""The answers to one request, which run together, are told apart by their index and end together."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing

import msgspec

from runtimes.contract import Delta, Done, Event, Job, Logprob, Placed, Usage

Numbered = AsyncGenerator[tuple[int, Event], None]  # events with the index of their answer
MOST = 128  # answers to one request, as OpenAI's


class Said(msgspec.Struct):
    """What one answer holds so far."""

    text: list[str] = []
    reasoning: list[str] = []
    names: list[str] = []  # of tool calls
    arguments: list[str] = []
    logprobs: list[Logprob] = []
    done: Done | None = None


def copies(job: Job, count: int) -> list[Job]:
    """The same job so many times; a seed goes up by one with each, else they would all say the same."""
    jobs = [job]
    for number in range(1, count):
        seed = None if job.sampling.seed is None else job.sampling.seed + number
        sampling = msgspec.structs.replace(job.sampling, seed=seed)
        jobs.append(msgspec.structs.replace(job, id=f"{job.id}-{number}", sampling=sampling))
    return jobs


async def together(answers: Sequence[AsyncGenerator[Event, None]], place: Callable[[Placed], None]) -> Numbered:
    """Events as they come; first of all one Placed, which `place` hears of, and no other until another engine takes an
    answer up. The first failure ends all."""
    if len(answers) == 1:
        async with aclosing(answers[0]) as events:
            async for event in events:
                if isinstance(event, Placed):
                    place(event)
                yield 0, event
        return
    arrived: asyncio.Queue[tuple[int, Event | Exception]] = asyncio.Queue()
    tasks = [asyncio.create_task(pass_on(index, events, arrived)) for index, events in enumerate(answers)]
    running, placed = len(tasks), set[int]()
    try:
        while running:
            index, came = await arrived.get()
            if isinstance(came, Exception):
                raise came
            running -= isinstance(came, Done)
            if isinstance(came, Placed) and not placed:
                place(came)
            if not isinstance(came, Placed) or index in placed or not placed:
                yield index, came
            placed.add(index)
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


async def collect(events: AsyncIterator[tuple[int, Event]], count: int) -> list[Said]:
    said = [Said() for _ in range(count)]
    async for index, event in events:
        one = said[index]
        match event:
            case Placed(again=True):
                said[index] = Said()
            case Delta():
                one.text.append(event.text)
                one.reasoning.append(event.reasoning)
                one.logprobs += event.logprobs
                if call := event.tool_call:
                    if call.name:
                        one.names.append(call.name)
                        one.arguments.append("")
                    one.arguments[-1] += call.arguments
            case Done():
                one.done = event
    return said


def total(dones: Sequence[Done], per_prompt: int) -> Usage:
    """Of all answers; a prompt counts once, however many there are to it."""
    usages = [done.usage for done in dones]
    prompts = usages[::per_prompt]
    return Usage(
        sum(usage.prompt_tokens for usage in prompts),
        sum(usage.completion_tokens for usage in usages),
        sum(usage.cached_tokens for usage in prompts),
        sum(usage.reasoning_tokens for usage in usages),
    )
