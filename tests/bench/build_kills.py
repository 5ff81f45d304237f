"""kill -9 at random moments of a first load: of the build process, and of the server, which builds for a request.

`python -m tests.bench.build_kills [--times 30] [--seed 0] [--runtimes llamacpp mlx]`. After each: a server
starts on the same cache and answers; no unfinished build is left; every file of the store is as it was built.
"""

import argparse
import os
import random
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import psutil

from enginehouse.optimize.store import Store
from tests.serving import Served, serve

QUESTION = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}
KINDS = (
    ("llamacpp", "Q4_K_M"), ("mlx", "4bit-g64"), ("llamacpp", "Q8_0"), ("openvino", "INT8_ASYM"), ("mlx", "8bit-g64"),
    ("onnx", "INT4_B32_H8"),
)  # fmt: skip


def ask(served: Served) -> httpx.Response:
    return httpx.post(f"{served.root}/v1/chat/completions", json=QUESTION | {"model": "pocket"}, timeout=300)


def seconds(model: dict[str, Any]) -> tuple[float, float]:
    """Of an undisturbed build, and of what comes after it until there is an answer."""
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder), {"pocket": model}) as served:
        asking = threading.Thread(target=ask, args=(served,))
        asking.start()
        served.wait_for("optimize: building")
        began = time.monotonic()
        served.wait_for("optimize: built")
        built = time.monotonic()
        asking.join()
        return built - began, time.monotonic() - built


def disturb(folder: Path, model: dict[str, Any], victim: str, after: float) -> str:
    """Kills one of them so long after the build has begun; says what became of the request."""
    replies: list[str] = []

    def request(served: Served) -> None:
        try:
            reply = ask(served)
            replies.append(f"status {reply.status_code}")
        except httpx.HTTPError as error:
            replies.append(type(error).__name__)

    with serve(folder, {"pocket": model}) as served:
        asking = threading.Thread(target=request, args=(served,))
        asking.start()
        served.wait_for("optimize: building")
        time.sleep(after)
        if victim == "server":
            children = served.children()
            served.process.kill()
            served.process.wait()
            _, alive = psutil.wait_procs(children, timeout=30)
            assert not alive, f"outlived the server: {alive}"
            killed = "the server"
        else:
            builds = [child for child in served.children() if "enginehouse.optimize.build" in child.cmdline()]
            for child in builds:
                os.kill(child.pid, signal.SIGKILL)
            killed = "the build" if builds else "no build: it had ended"
        asking.join()
    return f"killed {killed} after {after:.2f} s, {replies[0]}"


def aftermath(folder: Path, model: dict[str, Any]) -> list[str]:
    """What is wrong after a new start on the same cache."""
    store = Store(folder / "cache")
    with serve(folder, {"pocket": model}) as served:
        reply = ask(served)
    wrong = [] if reply.status_code == 200 and "Paris" in reply.text else [f"not served: {reply.text}"]
    wrong += [f"left behind: {path.name}" for path in (folder / "cache" / "artifacts").glob(".*")]
    return wrong + [reason for manifest in store.manifests() if (reason := store.verify(manifest.key))]


def main(times: int, seed: int, runtimes: list[str]) -> None:
    kinds = [kind for kind in KINDS if kind[0] in runtimes]
    chance, failures, began = random.Random(seed), 0, time.monotonic()
    took: dict[tuple[str, str], tuple[float, float]] = {}
    for number in range(times):
        runtime, precision = kinds[number // 2 % len(kinds)]
        victim = ("build", "server")[number % 2]
        model = {"source": "builtin:pocket", "runtime": runtime, "precision": precision}
        if (runtime, precision) not in took:
            took[runtime, precision] = seconds(model)
        building, loading = took[runtime, precision]
        after = chance.uniform(0, building + (loading if victim == "server" else 0))
        with tempfile.TemporaryDirectory() as name:
            told = disturb(Path(name), model, victim, after)
            wrong = aftermath(Path(name), model)
        failures += bool(wrong)
        print(f"{number + 1}: {runtime} {precision}: {told}; {'; '.join(wrong) or 'well again'}", flush=True)
    minutes = (time.monotonic() - began) / 60
    print(f"{times - failures} of {times} times everything was well again, in {minutes:.1f} minutes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--times", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runtimes", nargs="+", default=sorted({runtime for runtime, _ in KINDS}))
    arguments = parser.parse_args()
    main(arguments.times, arguments.seed, arguments.runtimes)
