"""Times one loaded candidate on this host: a prompt of real length, one answer alone, and all slots together."""

import asyncio
import random
import time
from contextlib import aclosing

import msgspec

from enginehouse.runtimes.contract import Done, Ids, Job, Sampling
from enginehouse.runtimes.pool.routing import PROMPT_TOKENS, Figures
from enginehouse.runtimes.worker.client import Worker

TOKENS = 48  # decoded for a figure
CROWD_PROMPT_TOKENS = 16
WARM_UP_TOKENS = 4


class Timed(msgspec.Struct, frozen=True):
    prompt_tokens: int
    tokens: int
    first_seconds: float  # from the request to its first token
    began: float
    ended: float


async def measure(worker: Worker) -> Figures:
    """Takes as long as about 650 prompt tokens and 50 answers' steps; nothing else should run meanwhile."""
    facts = worker.facts
    chance = random.Random(0)

    def prompt(length: int) -> list[int]:
        # Never the same beginning twice: a prefix in the cache would be no prefill.
        return [chance.randrange(facts.vocabulary) for _ in range(length)]

    length = min(PROMPT_TOKENS, facts.context_length - TOKENS - 1)
    await answer(worker, prompt(CROWD_PROMPT_TOKENS), WARM_UP_TOKENS)
    alone = await answer(worker, prompt(length), TOKENS)
    crowd = await asyncio.gather(*(answer(worker, prompt(CROWD_PROMPT_TOKENS), TOKENS) for _ in range(facts.slots)))
    # From when the last of them has its first token they decode together.
    together = max(one.began + one.first_seconds for one in crowd)
    last = max(one.ended for one in crowd)
    decoded = sum(
        (one.tokens - 1) * max(0.0, one.ended - together) / max(1e-9, one.ended - one.began - one.first_seconds)
        for one in crowd
    )
    return Figures(
        prefill=length / alone.first_seconds,
        decode=(alone.tokens - 1) / max(1e-9, alone.ended - alone.began - alone.first_seconds),
        decode_crowd=decoded / max(1e-9, last - together),
        slots=facts.slots,
        first_token_seconds=alone.first_seconds * PROMPT_TOKENS / length,
        load_seconds=worker.load_seconds,
        memory_bytes=worker.memory()[1],
    )


async def answer(worker: Worker, ids: list[int], tokens: int) -> Timed:
    sampling = Sampling(max_tokens=tokens, temperature=0, ignore_eos=True)
    began = time.monotonic()
    async with aclosing(worker.stream(Job("measure", worker.name, Ids(ids), sampling), [])) as events:
        async for event in events:
            if isinstance(event, Done):
                usage = event.usage
                return Timed(
                    usage.prompt_tokens, usage.completion_tokens, event.prefill_seconds, began, time.monotonic()
                )
    raise AssertionError("a stream ends with Done")
