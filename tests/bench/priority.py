"""A chat's time between tokens alone, and beside one request for sixteen answers: as a batch, or as if a person waited.

`python -m tests.bench.priority [--source builtin:smollm2] [--runtime llamacpp] [--precision P] [--rounds N]` prints for
each round's ratio to the chat alone the median and the quartiles, of the mean time between two tokens and of the 95th
of a hundred; and how many tokens the sixteen said for each of the chat's.
"""

import argparse
import asyncio
import itertools
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.serving import Served, serve

ANSWERS, TOKENS, KINDS = 16, 128, ("batch", "interactive")
QUESTION = "Tell me of round {round}: a river, a stone and whoever found it."


def body(content: str, **more: Any) -> dict[str, Any]:
    options = {"temperature": 0, "ignore_eos": True, "stream": True}
    return {"model": "model", "messages": [{"role": "user", "content": content}]} | options | more


async def gaps(client: httpx.AsyncClient, served: Served, round: int) -> list[float]:
    """Seconds between the tokens of a chat."""
    times, url = list[float](), f"{served.root}/v1/chat/completions"
    asked = body(QUESTION.format(round=round), max_tokens=TOKENS)
    async with client.stream("POST", url, json=asked) as response:
        assert response.status_code == 200
        async for line in response.aiter_lines():
            if '"content":"' in line:
                times.append(time.perf_counter())
    return [after - before for before, after in itertools.pairwise(times[1:])]


@asynccontextmanager
async def crowd(client: httpx.AsyncClient, served: Served, priority: str, round: int) -> AsyncIterator[list[float]]:
    """While sixteen answers are given; when their pieces came."""
    came, enough = list[float](), asyncio.Event()
    asked = body(QUESTION.format(round=-round), n=ANSWERS, seed=round, temperature=1.0)

    async def read() -> None:
        url, headers = f"{served.root}/v1/chat/completions", {"x-priority": priority}
        async with client.stream("POST", url, json=asked, headers=headers) as response:
            async for line in response.aiter_lines():
                if '"content":"' in line:
                    came.append(time.perf_counter())
                    if len(came) == 2 * ANSWERS:
                        enough.set()

    task = asyncio.create_task(read())
    await enough.wait()
    try:
        yield came
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def measure(served: Served, rounds: int) -> None:
    ratios: dict[str, list[tuple[float, ...]]] = {kind: [] for kind in KINDS}
    own = list[float]()
    async with httpx.AsyncClient(timeout=600) as client:
        await gaps(client, served, 0)
        for round in range(1, rounds + 1):
            alone = figures(await gaps(client, served, round))
            own.append(alone[0])
            for kind in KINDS:
                async with crowd(client, served, kind, round) as came:
                    before, began = len(came), time.perf_counter()
                    beside = figures(await gaps(client, served, round))
                    said = (len(came) - before) / TOKENS
                    waited = time.perf_counter() - began
                ratios[kind].append((beside[0] / alone[0], beside[1] / alone[1], said, waited))
    print(f"alone: {1000 * statistics.median(own):.1f} ms between two tokens")
    for kind in KINDS:
        for name, values in zip(
            ("mean", "95th", "tokens beside each", "seconds in all"), zip(*ratios[kind], strict=True), strict=True
        ):
            low, middle, high = statistics.quantiles(values, n=4)
            print(f"beside {ANSWERS} {kind}: {name} {middle:.2f} ({low:.2f} to {high:.2f})", flush=True)


def figures(seconds: list[float]) -> tuple[float, float]:
    return statistics.mean(seconds), statistics.quantiles(seconds, n=20)[-1]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--source", default="builtin:smollm2")
    parser.add_argument("--runtime", default="llamacpp")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    model = {"source": arguments.source, "runtime": arguments.runtime, "precision": arguments.precision}
    model |= {"slots": ANSWERS + 1, "context": 1024}
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder), {"model": model}) as served:
        asyncio.run(measure(served, arguments.rounds))


if __name__ == "__main__":
    main()
