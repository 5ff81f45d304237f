"""SIGSTOP at random moments, beside streams: of the worker, of a build, of the child that looks for devices.

`python -m tests.bench.stops [--times 6] [--streams 16] [--seed 0]`. Prints for each what a client was told that asked
then, after how long, and what the streams felt: answers that broke off, and the longest that one stood still.
"""

import argparse
import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil

from tests.bench.honest import Clients, seen
from tests.serving import Served, serve

WARM_SECONDS, QUESTION = 5.0, [{"role": "user", "content": "What is the capital of France?"}]
POCKET = {"source": "builtin:pocket", "runtime": "llamacpp"}
BUILT = {"source": "builtin:pocket", "runtime": "onnx", "precision": "int4"}


def ask(served: Served, model: str) -> str:
    began = time.monotonic()
    reply = httpx.post(
        f"{served.root}/v1/chat/completions",
        json={"model": model, "messages": QUESTION, "temperature": 0, "max_tokens": 20},
        timeout=300,
    )
    said = reply.json()["choices"][0]["message"]["content"] if reply.is_success else reply.json()["error"]["message"]
    return f"{reply.status_code} after {time.monotonic() - began:.1f} s: {said[:120]}"


def stop(served: Served, module: str) -> bool:
    """Whether there was such a child."""
    for child in served.children():
        try:
            if module in child.cmdline():
                os.kill(child.pid, signal.SIGSTOP)
                return True
        except (psutil.NoSuchProcess, ProcessLookupError):
            continue
    return False


def worker(served: Served, wait: float) -> str:
    time.sleep(wait)
    stop(served, "enginehouse.runtimes.worker")
    return ask(served, "pocket")


def build(served: Served, wait: float) -> str:
    answers: list[str] = []
    asking = threading.Thread(target=lambda: answers.append(ask(served, "built")))
    asking.start()
    while asking.is_alive() and not stop(served, "enginehouse.optimize.build"):
        time.sleep(0.05)
    asking.join()
    return answers[0] + "; again: " + ask(served, "built")


def beside_streams(folder: Path, act: Callable[[Served, float], str], streams: int, wait: float) -> str:
    models = {"pocket": POCKET | {"precision": "int8", "slots": streams}, "built": BUILT}
    with serve(folder, models, load_timeout="240s") as served:
        ask(served, "pocket")
        with Clients(served.root, "pocket", streams) as clients:
            time.sleep(WARM_SECONDS)
            began = time.monotonic()
            told = act(served, wait)
            time.sleep(WARM_SECONDS)
            ended = time.monotonic()
    felt = seen(clients.record, began, ended)
    return f"{told} | {felt.failures} | {felt.gap:.1f} s | {felt.percentile(0.99):.3f} s"


def probe(folder: Path) -> str:
    """Before any stream can be: the server has just begun."""
    with serve(folder, {"pocket": POCKET | {"precision": "int8"}}) as served:
        while not stop(served, "enginehouse.runtimes.pool.host"):
            time.sleep(0.01)
        return f"{ask(served, 'pocket')}; again: {ask(served, 'pocket')} | | |"


def main(times: int, streams: int, seed: int) -> None:
    chance = random.Random(seed)
    print("| stopped | after | who asked then | streams broken off | longest gap | /health p99 |", flush=True)
    print("|---|---|---|---|---|---|")
    for number in range(times):
        kind, wait = ("worker", "build", "probe")[number % 3], chance.uniform(0, 4)
        with tempfile.TemporaryDirectory() as folder:
            if kind == "probe":
                row = probe(Path(folder))
            else:
                row = beside_streams(Path(folder), worker if kind == "worker" else build, streams, wait)
        print(f"| {kind} | {wait:.1f} s | {row} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=6)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))
