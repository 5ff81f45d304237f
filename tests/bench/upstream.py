"""What passing through an upstream costs, per request and per token, against asking it directly: `python -m
tests.bench.upstream [--rounds N] [--tokens N] [--at-once N]`.

The upstream is another Enginehouse whose engine, echo, takes no time: what is left is HTTP and what is done with each
piece. Both are asked in turn, in one run; figures are medians over rounds. Wall-clock time wants a machine that does
nothing else; the processor time of the server that passes on is told beside it, and bears others.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import httpx
import psutil

from tests.serving import Served, serve

UPSTREAM = {"echo": {"source": "builtin:echo", "slots": 64, "context": 100_000}}
CHAT = "/v1/chat/completions"


async def seconds(root: str, tokens: int, requests: int, at_once: int) -> float:
    """For so many streams of so many tokens each, so many of them at a time."""
    turns, body = asyncio.Semaphore(at_once), {"model": "echo", "stream": True}
    body |= {"messages": [{"role": "user", "content": "a" * tokens}]}

    async def one(client: httpx.AsyncClient) -> None:
        async with turns, client.stream("POST", root + CHAT, json=body, timeout=600) as response:
            end = b""
            async for data in response.aiter_raw():
                end = (end + data)[-400:]
        assert b"[DONE]" in end, end

    limits = httpx.Limits(max_connections=at_once, max_keepalive_connections=at_once)
    async with httpx.AsyncClient(limits=limits) as client:
        await one(client)
        began = time.perf_counter()
        await asyncio.gather(*(one(client) for _ in range(requests)))
        return time.perf_counter() - began


class Cost(NamedTuple):
    """Of a request of one token, and of each further one."""

    request_ms: float
    token_us: float
    request_cpu_ms: float  # of the server that was asked
    token_cpu_us: float


def measured(served: Served, tokens: int, requests: int, at_once: int) -> Cost:
    process, found = psutil.Process(served.process.pid), []
    for length in (1, tokens):
        before = sum(process.cpu_times()[:2])
        wall = asyncio.run(seconds(served.root, length, requests, at_once))
        found.append((wall, (sum(process.cpu_times()[:2]) - before) * requests / (requests + 1)))  # one more was asked
    (short, short_cpu), (long, long_cpu) = found
    return Cost(*costs(short, long, requests, tokens), *costs(short_cpu, long_cpu, requests, tokens))


def costs(short: float, long: float, requests: int, tokens: int) -> tuple[float, float]:
    """Milliseconds for a request of one token, and microseconds for each further token."""
    return 1e3 * short / requests, 1e6 * (long - short) / requests / (tokens - 1)


def main(rounds: int, tokens: int, requests: int, at_once: int) -> None:
    with tempfile.TemporaryDirectory() as there, tempfile.TemporaryDirectory() as here:
        with serve(Path(there), UPSTREAM) as upstream:
            config = {"base_urls": [f"{upstream.root}/v1"], "model": "echo"}
            with serve(Path(here), {"echo": {"runtime": "upstream", "upstream": config}}) as front:
                ways: dict[str, list[Cost]] = {"direct": [], "through": []}
                for number in range(rounds):
                    for way, asked in (("direct", upstream), ("through", front)):
                        ways[way].append(measured(asked, tokens, requests, at_once))
                        print(f"round {number + 1}, {way}: {told(ways[way][-1])}")
    print(f"\n{requests} requests, {at_once} at a time, {tokens} tokens each, medians of {rounds} rounds\n")
    print("| | a request of one token | each further token | processor: a request | each further token |")
    print("|---|---|---|---|---|")
    direct, through = (Cost(*map(statistics.median, zip(*found, strict=True))) for found in ways.values())
    more = Cost(through.request_ms - direct.request_ms, through.token_us - direct.token_us, *through[2:])
    for way, cost in (("direct", direct), ("through", through), ("passing it on", more)):
        print(f"| {way} | {told(cost)} |")


def told(cost: Cost) -> str:
    wall = f"{cost.request_ms:.2f} ms | {cost.token_us:.1f} us"
    return f"{wall} | {cost.request_cpu_ms:.2f} ms | {cost.token_cpu_us:.1f} us"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--requests", type=int, default=50)
    parser.add_argument("--at-once", type=int, default=1)
    arguments = parser.parse_args()
    main(arguments.rounds, arguments.tokens, arguments.requests, arguments.at_once)
