"""The engine's own step loop with nothing around it; orders on stdin: {"requests", "prompt", "tokens", "seed"}."""

import json
import os
import random
import sys
import time

from enginehouse.runtimes.contract import Load, Sampling
from enginehouse.runtimes.engines import runtimes


def main(path: str, threads: int, slots: int) -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    engine = runtimes()["llamacpp"].load(Load("llamacpp", path, 2048, slots, threads, 0), lambda fraction: None)
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        chance = random.Random(order["seed"])
        sampling = Sampling(max_tokens=order["tokens"], temperature=0, ignore_eos=True)
        began = time.perf_counter()
        for job in range(order["requests"]):
            engine.add(job, [chance.randrange(1000, 100_000) for _ in range(order["prompt"])], sampling)
        running = order["requests"]
        while running:
            running -= sum(1 for token in engine.step() if token.finish)
        print(time.perf_counter() - began, file=out, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
