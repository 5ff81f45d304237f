"""Many streams for minutes over two models of which one fits at a time: what is left of memory, files and processes.

`python -m tests.bench.soak [--streams 64] [--minutes 10] [--runtimes llamacpp onnx]`: the streams hold conversations of
three turns, of one model for a minute and then of the other, so that models are unloaded and their KV goes to the disk.
Prints every minute what the server and its workers hold, at the end the answers by kind, and whether each file of KV is
whole.
"""

import argparse
import asyncio
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil

from enginehouse.runtimes.decoding.kv_disk import ENDING, PART, KvDisk
from tests.bench.llama_server import words
from tests.serving import Served, serve

PHASE_SECONDS, TURNS, TOKENS, LEAVES = 60, 3, 24, 0.1
BUDGET = "700MiB"


class Seen(msgspec.Struct):
    answers: Counter[str] = msgspec.field(default_factory=Counter)
    tokens: int = 0
    prompts: int = 0
    cached: int = 0
    models: Counter[str] = msgspec.field(default_factory=Counter)


async def converse(
    client: httpx.AsyncClient, root: str, models: list[str], number: int, end: float, seen: Seen
) -> None:
    """One conversation after another; a tenth of the answers is left before its end."""
    chance = random.Random(number)
    while time.monotonic() < end:
        model = models[int(time.monotonic() / PHASE_SECONDS) % len(models)]
        messages = [{"role": "user", "content": words(chance, chance.randint(30, 300))}]
        for _ in range(TURNS):
            kind, said = await turn(client, root, model, messages, chance, seen)
            seen.answers[kind] += 1
            seen.models[model] += 1
            if kind != "whole" or time.monotonic() > end:
                break
            messages += [{"role": "assistant", "content": said}, {"role": "user", "content": words(chance, 12)}]


async def turn(
    client: httpx.AsyncClient, root: str, model: str, messages: list[dict[str, str]], chance: random.Random, seen: Seen
) -> tuple[str, str]:
    body: dict[str, Any] = {"model": model, "messages": messages, "max_tokens": TOKENS, "ignore_eos": True}
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    leaves, said = chance.random() < LEAVES, ""
    async with client.stream("POST", f"{root}/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            return f"{response.status_code} {(await response.aread()).decode()[:160]}", ""
        async for line in response.aiter_lines():
            event = msgspec.json.decode(line[6:]) if line.startswith("data: {") else {}
            if "error" in event:
                return f"error event: {event['error']['message'][:160]}", ""
            if usage := event.get("usage"):
                seen.tokens += usage["completion_tokens"]
                seen.prompts += usage["prompt_tokens"]
                seen.cached += usage["prompt_tokens_details"]["cached_tokens"]
            said += "".join(choice["delta"].get("content") or "" for choice in event.get("choices") or ())
            if leaves and said:
                return "left", ""
    return "whole", said


def held(served: Served) -> str:
    server, workers = psutil.Process(served.process.pid), served.children()
    resident = sum(worker.memory_info().rss for worker in workers) >> 20
    files = list((served.cache / "kv").rglob(f"*{ENDING}"))
    return (
        f"server {server.memory_info().rss >> 20} MiB, {server.num_fds()} descriptors; {len(workers)} workers "
        f"{resident} MiB; KV on the disk {sum(file.stat().st_size for file in files) >> 20} MiB in {len(files)} files"
    )


async def run(served: Served, models: list[str], streams: int, minutes: float) -> Seen:
    seen, began = Seen(), time.monotonic()
    end = began + 60 * minutes
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=600, limits=limits) as client, asyncio.TaskGroup() as group:
        for number in range(streams):
            group.create_task(converse(client, served.root, models, number, end, seen))
        while time.monotonic() < end:
            await asyncio.sleep(60)
            answers = sum(seen.answers.values())
            print(f"{time.monotonic() - began:.0f} s: {held(served)}; {answers} answers", flush=True)
    return seen


def damaged(kv: Path) -> list[str]:
    """Files that are not whole, and those that were never finished."""
    out = [str(part) for part in kv.rglob(f"*{PART}")]
    for folder in {file.parent for file in kv.rglob(f"*{ENDING}")}:
        disk = KvDisk(folder, 0)
        out += [str(file) for file in folder.glob(f"*{ENDING}") if disk.take(file) is None]
    return out


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--runtimes", nargs=2, default=["llamacpp", "onnx"])
    arguments = parser.parse_args()
    models = {
        f"model {number}": {"source": "builtin:smollm2", "runtime": runtime, "context": 2048}
        for number, runtime in enumerate(arguments.runtimes)
    }
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder), models, memory_budget=BUDGET) as served:
        for model in models:
            served.client.with_options(timeout=3600).completions.create(model=model, prompt="Hello", max_tokens=2)
        print(f"at the start: {held(served)}", flush=True)
        seen = asyncio.run(run(served, list(models), arguments.streams, arguments.minutes))
        print(f"at the end: {held(served)}")
        print(f"answers: {dict(seen.answers)}, by model {dict(seen.models)}")
        print(f"{seen.tokens} tokens said, {seen.prompts} of prompts, {seen.cached} of them reused")
        print(f"damaged: {damaged(served.cache / 'kv') or 'none'}")


if __name__ == "__main__":
    main()
