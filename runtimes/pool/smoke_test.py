"""A few greedy tokens from a model just loaded: does it still say what it said on the first engine that ran it?"""

import itertools
import math
from contextlib import aclosing

from enginehouse.runtimes.contract import Chat, Delta, Job, Sampling, Scored
from enginehouse.runtimes.errors import Refused
from enginehouse.runtimes.worker.client import Worker

QUESTION = Chat([{"role": "user", "content": "Repeat: lemon river stone"}])
TOKENS = 8
SURE = -0.05  # log-probability; a token less likely may well be another one after quantization
FEW = 2  # sure tokens at the beginning; with fewer there is nothing to go by


class Gibberish(Exception):
    """The engine answers, but not what this model says."""


async def test(worker: Worker, expected: list[int] | None) -> list[int] | None:
    """The tokens it began with as long as it was sure of them; None where it is not, or cannot be asked.

    Raises Gibberish when not one of those expected comes: quantization changes some, a broken kernel all of them.
    """
    if "logprobs" not in worker.facts.features:
        return None
    scored: list[Scored] = []
    job = Job("smoke", worker.name, QUESTION, Sampling(max_tokens=TOKENS, temperature=0, logprobs=0))
    try:
        async with aclosing(worker.stream(job, [])) as events:
            async for event in events:
                if isinstance(event, Delta):
                    scored += [one.token for one in event.logprobs]
    except Refused:  # a template that takes no such message
        return None
    if not all(math.isfinite(one.logprob) for one in scored):
        raise Gibberish("the smoke test gave log-probabilities that are no numbers")
    answered = [one.id for one in scored]
    if expected and not any(a == b for a, b in zip(answered, expected, strict=False)):
        raise Gibberish(f"the smoke test gave tokens {answered[: len(expected)]} where this model says {expected}")
    sure = [one.id for one in itertools.takewhile(lambda one: one.logprob > SURE, scored)]
    return sure if len(sure) >= FEW else None
