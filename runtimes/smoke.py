"""A few greedy tokens from a model just loaded: does it still say what it said on the first engine that ran it?"""

import math
from contextlib import aclosing

from runtimes.contract import Chat, Delta, Job, Refused, Sampling
from runtimes.process import Worker

QUESTION = Chat([{"role": "user", "content": "Count from one to ten."}])
TOKENS = 8
COMPARED = 4  # of the first tokens, one must be the same: quantization changes words, a broken kernel all of them
SURE = -0.7  # mean log-probability; a model that is less sure than that may say anything on another engine


class Gibberish(Exception):
    """The engine answers, but not what this model says."""


async def test(worker: Worker, expected: list[int] | None) -> list[int] | None:
    """The tokens it said, None where it is not sure of them or cannot be asked. Raises Gibberish."""
    if "logprobs" not in worker.facts.features:
        return None
    said: list[int] = []
    scores: list[float] = []
    job = Job("smoke", worker.name, QUESTION, Sampling(max_tokens=TOKENS, temperature=0, logprobs=0))
    try:
        async with aclosing(worker.stream(job, said)) as events:
            async for event in events:
                if isinstance(event, Delta):
                    scores += [one.token.logprob for one in event.logprobs]
    except Refused:  # a template that takes no such message
        return None
    if not all(map(math.isfinite, scores)):
        raise Gibberish("the smoke test gave log-probabilities that are no numbers")
    if expected and said and not any(a == b for a, b in zip(said[:COMPARED], expected, strict=False)):
        raise Gibberish(f"the smoke test gave tokens {said[:COMPARED]} where this model says {expected[:COMPARED]}")
    return said if scores and sum(scores) / len(scores) > SURE else None
