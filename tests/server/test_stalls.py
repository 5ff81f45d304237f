"""What grows with a body or an answer is done apart from the event loop."""

import asyncio
import time
from collections.abc import Awaitable
from typing import Any

from enginehouse.runtimes.contract import Assigned, Delta, Done, Job, Logprob, Scored, Text, Usage
from enginehouse.server.api.chat.protocol import ChatRequest, Message
from enginehouse.server.api.chat.render import ChatRenderer
from enginehouse.server.api.rerank import similarities
from enginehouse.server.exchange import Answer

ASSIGNED = Assigned("echo", "echo", "cpu", "because", "fp")


async def longest_gap(work: Awaitable[Any]) -> float:
    """Seconds in which nothing else ran."""
    task, gap, last = asyncio.ensure_future(work), 0.0, time.perf_counter()
    while not task.done():
        await asyncio.sleep(0)
        now = time.perf_counter()
        gap, last = max(gap, now - last), now
    await task
    return gap


def answer(tokens: int) -> Answer:
    made = Answer(Job("id", "m", Text("hi")))
    scored = Scored(1, b"a", -1.0)
    for event in (ASSIGNED, Delta("a" * tokens, logprobs=[Logprob(scored, (scored,) * 20)] * tokens)):
        made.take(event)
    made.take(Done("stop", Usage(1, tokens)))
    return made


def test_an_answer_with_many_logprobs_stops_nothing_while_it_is_put_together() -> None:
    renderer = ChatRenderer(ChatRequest("m", [Message("user", "hi")]))
    answers = [answer(500) for _ in range(32)]
    assert (
        asyncio.run(longest_gap(renderer.whole(ASSIGNED, answers))) < 1.0
    )  # 2.1 on the loop; what is left is the garbage collector


def test_similarities_are_the_products_of_vectors() -> None:
    assert similarities([1.0, 2.0], [3.0, 4.0], [0.0, 1.0]) == [11.0, 2.0]
