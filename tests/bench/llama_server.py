"""This server against llama-server of the same commit, over HTTP, in one sitting, on Qwen3-0.6B's shape.

`python -m tests.bench.llama_server BINARY [--precision Q4_0] [--runtimes llamacpp onnx openvino]`. The binary is built
from the llama-cpp-python sdist's vendor/llama.cpp. Prompts of about 352 tokens, 64 generated, greedy, never twice.
"""

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from enginehouse.optimize.prepare import locate, prepare
from enginehouse.optimize.toolchains import toolchains
from enginehouse.runtimes.pool import host
from tests.bench.http import HOME
from tests.bench.shape import LETTERS, make
from tests.serving import free_port, serve

PROMPT_WORDS, TOKENS, SLOTS, CONTEXT = 118, 64, 8, 1024  # a word and its space are three tokens


async def crowd(url: str, model: str, requests: int, seed: int) -> tuple[float, float]:
    """Tokens per second of all, and the median seconds to the first token."""
    chance = random.Random(seed)
    prompts = [" ".join("".join(chance.choices(LETTERS, k=4)) for _ in range(PROMPT_WORDS)) for _ in range(requests)]

    async def one(client: httpx.AsyncClient, prompt: str) -> float:
        options = {"max_tokens": TOKENS, "temperature": 0, "ignore_eos": True, "stream": True}
        body = {"model": model, "messages": [{"role": "user", "content": prompt}], **options}
        began, first = time.perf_counter(), 0.0
        async with client.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=600) as response:
            async for line in response.aiter_lines():
                if not first and line.startswith("data: {"):
                    choices = json.loads(line[6:])["choices"]
                    if choices and choices[0]["delta"].get("content"):
                        first = time.perf_counter() - began
        return first

    async with httpx.AsyncClient() as client:
        began = time.perf_counter()
        firsts = await asyncio.gather(*(one(client, prompt) for prompt in prompts))
        return requests * TOKENS / (time.perf_counter() - began), statistics.median(firsts)


@contextmanager
def llama_server(binary: str, gguf: str) -> Iterator[str]:
    port, threads = free_port(), str(host.cores())
    command = [binary, "-m", gguf, "--host", "127.0.0.1", "--port", str(port), "--parallel", str(SLOTS)]
    command += ["-c", str(SLOTS * CONTEXT), "-t", threads, "-tb", threads, "--no-ui", "--kv-unified"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                if httpx.get(f"{url}/health", timeout=1).status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("--precision", default="Q4_0")
    parser.add_argument("--runtimes", nargs="+", default=["llamacpp", "onnx", "openvino"])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    source = make(HOME / "qwen3-0.6b-shape")

    async def build() -> str:
        found = await locate(str(source), None, lambda stage, done: None)
        made = await prepare(
            found, toolchains()["gguf"], arguments.precision, HOME, lambda stage, done: None, rules=None
        )
        return made.path

    gguf = asyncio.run(build())
    common = {"context": CONTEXT, "slots": SLOTS, "keep_alive": "forever"}
    models = {
        name: common
        | ({"source": gguf} if name == "llamacpp" else {"source": str(source), "runtime": name, "precision": "int4"})
        for name in arguments.runtimes
    }
    with tempfile.TemporaryDirectory() as folder, llama_server(arguments.binary, gguf) as theirs:
        with serve(Path(folder), models, {"ENGINEHOUSE_CACHE_DIR": str(HOME)}) as ours:
            places = {"llama-server": theirs, **dict.fromkeys(models, ours.root)}
            for name, url in places.items():
                asyncio.run(crowd(url, name, 1, -1))
            for requests in (1, SLOTS):
                seen: dict[str, list[tuple[float, float]]] = {name: [] for name in places}
                for seed in range(arguments.rounds):
                    for name, url in places.items():
                        seen[name].append(asyncio.run(crowd(url, name, requests, seed)))
                speed, first = (statistics.median(row[at] for row in seen["llama-server"]) for at in (0, 1))
                for name, rows in seen.items():
                    own_speed, own_first = (statistics.median(row[at] for row in rows) for at in (0, 1))
                    print(
                        f"{requests} at once, {name}: {own_speed:.1f} tok/s ({own_speed / speed:.2f}x), "
                        f"first token {own_first:.2f} s ({own_first / first:.2f}x)",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
