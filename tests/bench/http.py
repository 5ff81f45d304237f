"""Tokens per second through the whole house against the bare engine loop, in turn, in one run.

`make bench`, or `python -m tests.bench.http [--rounds N] [--precision P]`. Figures to quote are the ratios.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import psutil

from enginehouse.optimize.prepare import locate, prepare
from enginehouse.optimize.toolchains import toolchains
from enginehouse.runtimes.engines import runtimes
from enginehouse.runtimes.pool import host
from tests.bench.shape import LETTERS, make
from tests.serving import Served, free_port, serve

HOME = Path.home() / ".cache" / "enginehouse" / "bench"
PROMPT_WORDS, TOKENS, SLOTS = 22, 64, 8
PROMPT_TOKENS = 3 * PROMPT_WORDS - 1  # four letters are two tokens, a space one


class Bare:
    def __init__(self, path: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.bare", path, str(host.cores()), str(SLOTS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **runtimes()["llamacpp"].environment},
        )
        assert self.process.stdout
        assert self.process.stdout.readline() == "ready\n"

    def seconds(self, requests: int, seed: int) -> float:
        assert self.process.stdin and self.process.stdout
        order = {"requests": requests, "prompt": PROMPT_TOKENS, "tokens": TOKENS, "seed": seed}
        print(json.dumps(order), file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())


async def http_seconds(served: Served, requests: int, seed: int) -> float:
    chance = random.Random(seed)

    async def one(client: httpx.AsyncClient, prompt: str) -> None:
        options = {"max_tokens": TOKENS, "temperature": 0, "ignore_eos": True, "stream": True}
        body = {"model": "big", "messages": [{"role": "user", "content": prompt}], **options}
        async with client.stream("POST", f"{served.root}/v1/chat/completions", json=body, timeout=600) as response:
            end = b""
            async for data in response.aiter_raw():
                end = (end + data)[-400:]
        assert b'"finish_reason":"length"' in end, end

    prompts = [" ".join("".join(chance.choices(LETTERS, k=4)) for _ in range(PROMPT_WORDS)) for _ in range(requests)]
    async with httpx.AsyncClient() as client:
        began = time.perf_counter()
        await asyncio.gather(*(one(client, prompt) for prompt in prompts))
        return time.perf_counter() - began


def start_figures() -> tuple[float, float]:
    """Seconds from the command to an answer on /health, and MiB resident then, with no model loaded."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "enginehouse.server.cli.main",
        "serve",
        "--port",
        str(port),
        "--log-level",
        "error",
    ]
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(command, cwd=folder, env={**os.environ, "PYTHONPATH": str(Path.cwd() / "src")})
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            except httpx.TransportError:
                time.sleep(0.01)
        seconds = time.perf_counter() - began
        resident = psutil.Process(process.pid).memory_info().rss / 2**20
        process.terminate()
        process.wait()
    return seconds, resident


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="Q4_0")
    arguments = parser.parse_args()
    starts = [start_figures() for _ in range(5)]
    print(f"start to /health: {statistics.median(s for s, _ in starts):.2f} s, {starts[-1][1]:.0f} MiB resident")

    source = make(HOME / "qwen3-0.6b-shape")

    async def build() -> str:
        found = await locate(str(source), None, lambda stage, done: None)
        artifact = await prepare(
            found, toolchains()["gguf"], arguments.precision, HOME, lambda stage, done: None, rules=None
        )
        return artifact.path

    path = asyncio.run(build())
    bare = Bare(path)
    model = {"source": path, "context": 2048, "slots": SLOTS, "keep_alive": "forever"}
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder), {"big": model}) as served:
        asyncio.run(http_seconds(served, 1, -1))
        bare.seconds(1, -1)
        for requests in (1, 8):
            ratios = []
            for seed in range(arguments.rounds):
                alone, through = bare.seconds(requests, seed), asyncio.run(http_seconds(served, requests, seed))
                ratios.append(alone / through)
                total = requests * TOKENS
                print(
                    f"{requests} at once: bare {total / alone:.1f} tok/s, HTTP {total / through:.1f}, {ratios[-1]:.3f}"
                )
            print(f"{requests} at once: HTTP is {statistics.median(ratios):.3f} of the bare loop (median)")
    bare.process.kill()


if __name__ == "__main__":
    main()
