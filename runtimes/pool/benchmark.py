"""Times one loaded candidate on this host: a prompt of real length, one answer alone, and all slots together; or the
prompts that it is given."""

import asyncio
import random
import time
from collections.abc import Sequence
from contextlib import aclosing

import msgspec

from enginehouse.runtimes.contract import Done, Ids, Job, Prompt, Sampling
from enginehouse.runtimes.pool.routing import PROMPT_TOKENS, Figures
from enginehouse.runtimes.worker.client import Worker

TOKENS = 48  # decoded for a figure
CROWD_PROMPT_TOKENS = 16
WARM_UP_TOKENS = 4
GIVEN_TOKENS = 256  # of an answer to a prompt that was given, at most


class Timed(msgspec.Struct, frozen=True):
    read_tokens: int  # of the prompt, without what was in the KV cache
    tokens: int
    first_seconds: float  # from the request to its first token
    began: float
    ended: float

    @property
    def decode_seconds(self) -> float:
        return max(1e-9, self.ended - self.began - self.first_seconds)


async def measure(worker: Worker, prompts: Sequence[Prompt] = (), setting: str = "") -> Figures:
    """Takes as long as about 650 prompt tokens and 50 answers' steps, or as the prompts do; nothing else should run
    meanwhile."""
    alone, crowd = await given(worker, prompts) if prompts else await drawn(worker)
    # From when the last of them has its first token they decode together.
    together = max(one.began + one.first_seconds for one in crowd)
    last = max(one.ended for one in crowd)
    decoded = sum((one.tokens - 1) * max(0.0, one.ended - together) / one.decode_seconds for one in crowd)
    prefill = sum(one.read_tokens for one in alone) / sum(one.first_seconds for one in alone)
    return Figures(
        prefill=prefill,
        decode=sum(one.tokens - 1 for one in alone) / sum(one.decode_seconds for one in alone),
        decode_crowd=decoded / max(1e-9, last - together),
        slots=worker.facts.slots,
        first_token_seconds=PROMPT_TOKENS / prefill,
        load_seconds=worker.load_seconds,
        memory_bytes=worker.memory()[1],
        setting=setting,
    )


async def drawn(worker: Worker) -> tuple[list[Timed], list[Timed]]:
    """Of tokens by chance, answered by chance: what an engine makes of noise without that is one phrase over and over,
    which those that guess would say too soon."""
    facts = worker.facts
    chance, sampling = random.Random(0), Sampling(max_tokens=TOKENS, seed=0, ignore_eos=True)

    def prompt(length: int) -> Ids:
        # Never the same beginning twice: a prefix in the cache would be no prefill.
        return Ids([chance.randrange(facts.vocabulary) for _ in range(length)])

    warm_up = msgspec.structs.replace(sampling, max_tokens=WARM_UP_TOKENS)
    await answer(worker, prompt(CROWD_PROMPT_TOKENS), warm_up)
    alone = await answer(worker, prompt(min(PROMPT_TOKENS, facts.context_length - TOKENS - 1)), sampling)
    crowd = [answer(worker, prompt(CROWD_PROMPT_TOKENS), sampling) for _ in range(facts.slots)]
    return [alone], list(await asyncio.gather(*crowd))


async def given(worker: Worker, prompts: Sequence[Prompt]) -> tuple[list[Timed], list[Timed]]:
    sampling = Sampling(max_tokens=GIVEN_TOKENS, temperature=0)
    alone = [await answer(worker, prompt, sampling) for prompt in prompts]
    crowd = [answer(worker, prompts[number % len(prompts)], sampling) for number in range(worker.facts.slots)]
    return alone, list(await asyncio.gather(*crowd))


async def answer(worker: Worker, prompt: Prompt, sampling: Sampling) -> Timed:
    began = time.monotonic()
    async with aclosing(worker.stream(Job("measure", worker.name, prompt, sampling), [])) as events:
        async for event in events:
            if isinstance(event, Done):
                usage = event.usage
                read = usage.prompt_tokens - usage.cached_tokens
                return Timed(read, usage.completion_tokens, event.prefill_seconds, began, time.monotonic())
    raise AssertionError("a stream ends with Done")
